"""Counters of a run: means since the last log point, skipped updates, seconds of training."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite

import torch
from torch import Tensor

from varlab.config import Config
from varlab.types import VarlabError

_PATIENCE = 3  # updates in a row that may fail: one can be a bad batch, three are a diverged run


class DivergedError(VarlabError):
    """Too many updates in a row had values that are not finite. names: of these values in the last update."""

    def __init__(self, message: str, names: list[str]):
        super().__init__(message)
        self.names = names


class Means:
    """Means by name over the updates since the last ``reset``, summed in float64 on the device of the values."""

    def __init__(self) -> None:
        self._names: tuple[str, ...] = ()
        self._sum_N = torch.zeros(0, dtype=torch.float64)
        self._count_N: list[int] = []

    def add(self, names: tuple[str, ...], values_N: Tensor) -> None:
        """Add the values of one update; nothing is read from the device."""
        self._sum_N = self._sum_N.to(values_N.device)
        if new := tuple(name for name in names if name not in self._names):
            self._names += new
            self._sum_N = torch.cat([self._sum_N, self._sum_N.new_zeros(len(new))])
            self._count_N += [0] * len(new)
        places = [self._names.index(name) for name in names]
        for place in places:
            self._count_N[place] += 1
        first, end = places[0], places[0] + len(places)
        in_a_row = self._names[first:end] == names
        # a list of places would be copied to the device, and the host would wait for that
        self._sum_N[slice(first, end) if in_a_row else places] += values_N

    def values(self) -> dict[str, float]:
        """The means by name."""
        return {name: total / count for name, (total, count) in self.state().items()}

    def reset(self) -> None:
        """Begin new means."""
        self._names, self._sum_N, self._count_N = (), self._sum_N[:0], []

    def state(self) -> dict[str, list[float]]:
        """For a checkpoint: the sum and the count of each name."""
        return {
            name: [total, count]
            for name, total, count in zip(self._names, self._sum_N.tolist(), self._count_N, strict=True)
        }

    def load_state(self, state: Mapping[str, list[float]]) -> None:
        """Restore ``state``."""
        self._names = tuple(state)
        self._sum_N = torch.tensor([total for total, _ in state.values()], dtype=torch.float64)
        self._count_N = [int(count) for _, count in state.values()]


class SkippedUpdates:
    """Counts updates skipped because a loss or gradient norm was not finite; too many in a row end the training."""

    def __init__(self) -> None:
        self.total = 0
        self._in_a_row: dict[str, int] = {}

    def check(
        self, optimizer: str, names: Sequence[str], values_N: Tensor, images: int, *, known: bool | None = None
    ) -> bool:
        """Whether all values are finite, so that the named optimizer may step. VarlabError if three in a row are not.

        Waits for one number of the device unless the answer is ``known``; reads the values only if one is not finite.
        """
        good = bool(values_N.isfinite().all()) if known is None else known
        bad = (
            [] if good else [name for name, value in zip(names, values_N.tolist(), strict=True) if not isfinite(value)]
        )
        self._in_a_row[optimizer] = self._in_a_row.get(optimizer, 0) + 1 if bad else 0
        self.total += bool(bad)
        if self._in_a_row[optimizer] >= _PATIENCE:
            what = f"{', '.join(bad)} not finite in {_PATIENCE} updates in a row"
            raise DivergedError(
                f"Training diverged after {images} images ({what}): "
                "lower the learning rate, clip harder or start the discriminator later.",
                bad,
            )
        return not bad

    @property
    def in_doubt(self) -> bool:
        """Whether the last update was skipped."""
        return any(self._in_a_row.values())

    @property
    def next_one_ends(self) -> bool:
        """Whether the training ends if the next update is skipped too."""
        return max(self._in_a_row.values(), default=0) == _PATIENCE - 1

    def state(self) -> Config:
        """For a checkpoint."""
        return {"total": self.total, "in_a_row": dict(self._in_a_row)}

    def load_state(self, state: Config) -> None:
        """Restore ``state``."""
        self.total, self._in_a_row = state["total"], dict(state["in_a_row"])


class HostFlag:
    """A boolean of the device, on its way to the host, which waits only for what was computed before it."""

    def __init__(self, flag: Tensor):
        self._value = flag.to("cpu", non_blocking=True)
        self._copied = torch.cuda.Event() if flag.is_cuda else None
        if self._copied is not None:
            self._copied.record()

    def read(self) -> bool:
        """The value."""
        if self._copied is not None:
            self._copied.synchronize()
        return bool(self._value)


class Stopwatch:
    """Seconds of training, without evaluations; a resumed run continues the count."""

    def __init__(self) -> None:
        self._before = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Run, unless already running."""
        self._since = time.perf_counter() if self._since is None else self._since

    def stop(self) -> None:
        """Stop counting."""
        self._before, self._since = self.seconds, None

    @property
    def seconds(self) -> float:
        """Counted so far."""
        return self._before + (time.perf_counter() - self._since if self._since is not None else 0.0)

    @seconds.setter
    def seconds(self, value: float) -> None:
        self._before = value
        self._since = time.perf_counter() if self._since is not None else None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Do not count the seconds of the block."""
        running = self._since is not None
        self.stop()
        try:
            yield
        finally:
            if running:
                self.start()


def accumulate(total: dict[str, Tensor], values: Mapping[str, Tensor], share: float) -> None:
    """Add the means of a micro-batch to those of the batch."""
    for name, value in values.items():
        total[name] = total[name] + value * share if name in total else value * share
