"""Counters of a run: means since the last log point, skipped updates, seconds of training."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from varlab.config import Config
from varlab.types import VarlabError

_PATIENCE = 3  # updates in a row that may fail: one can be a bad batch, three are a diverged run


class DivergedError(VarlabError):
    """Too many updates in a row had values that are not finite. names: of these values in the last update."""

    def __init__(self, message: str, names: list[str]):
        super().__init__(message)
        self.names = names


class Means:
    """Means by name over the updates since the last ``reset``."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}

    def add(self, values: Mapping[str, float]) -> None:
        """Add the values of one update."""
        for name, value in values.items():
            entry = self._sums.setdefault(name, [0.0, 0])
            entry[0] += value
            entry[1] += 1

    def values(self) -> dict[str, float]:
        """The means by name."""
        return {name: total / count for name, (total, count) in self._sums.items()}

    def reset(self) -> None:
        """Begin new means."""
        self._sums = {}

    def state(self) -> dict[str, list[float]]:
        """For a checkpoint."""
        return {name: list(entry) for name, entry in self._sums.items()}

    def load_state(self, state: Mapping[str, list[float]]) -> None:
        """Restore ``state``."""
        self._sums = {name: list(entry) for name, entry in state.items()}


class SkippedUpdates:
    """Counts updates skipped because a loss or gradient norm was not finite; too many in a row end the training."""

    def __init__(self) -> None:
        self.total = 0
        self._in_a_row: dict[str, int] = {}

    def check(self, optimizer: str, values: Mapping[str, float], images: int) -> bool:
        """Whether all values are finite, so that the named optimizer may step. VarlabError if three in a row are not."""
        bad = [name for name, value in values.items() if not math.isfinite(value)]
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
    def next_one_ends(self) -> bool:
        """Whether the training ends if the next update is skipped too."""
        return max(self._in_a_row.values(), default=0) == _PATIENCE - 1

    def state(self) -> Config:
        """For a checkpoint."""
        return {"total": self.total, "in_a_row": dict(self._in_a_row)}

    def load_state(self, state: Config) -> None:
        """Restore ``state``."""
        self.total, self._in_a_row = state["total"], dict(state["in_a_row"])


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
