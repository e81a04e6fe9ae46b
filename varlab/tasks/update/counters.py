"""What a run keeps count of: means since the last log point, updates that were skipped, seconds of training."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from varlab.config import Config
from varlab.types import VarlabError

_PATIENCE = 3  # updates in a row that may go wrong: one can be a bad batch, three are a diverged run


class DivergedError(VarlabError):
    """Updates went wrong too often in a row. names: what was not finite in the last of them."""

    def __init__(self, message: str, names: list[str]):
        super().__init__(message)
        self.names = names


class Means:
    """Means by name over the updates since the last ``take``."""

    def __init__(self) -> None:
        self._sums: dict[str, list[float]] = {}

    def add(self, values: Mapping[str, float]) -> None:
        """One update's values."""
        for name, value in values.items():
            entry = self._sums.setdefault(name, [0.0, 0])
            entry[0] += value
            entry[1] += 1

    def take(self) -> dict[str, float]:
        """The means, and a fresh start."""
        means = {name: total / count for name, (total, count) in self._sums.items()}
        self._sums = {}
        return means

    def state(self) -> dict[str, list[float]]:
        """For a checkpoint."""
        return {name: list(entry) for name, entry in self._sums.items()}

    def load_state(self, state: Mapping[str, list[float]]) -> None:
        """Take up where ``state`` left off."""
        self._sums = {name: list(entry) for name, entry in state.items()}


class Faults:
    """Updates skipped because a loss or gradient norm was not finite; too many in a row end the training."""

    def __init__(self) -> None:
        self.total = 0
        self._in_a_row: dict[str, int] = {}

    def check(self, who: str, values: Mapping[str, float], images: int) -> bool:
        """Whether ``who`` (an optimizer's name) may make its update. VarlabError after three in a row that may not."""
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        self._in_a_row[who] = self._in_a_row.get(who, 0) + 1 if bad else 0
        self.total += bool(bad)
        if self._in_a_row[who] >= _PATIENCE:
            what = f"{', '.join(bad)} not finite in {_PATIENCE} updates in a row"
            raise DivergedError(
                f"Training diverged after {images} images ({what}): "
                "lower the learning rate, clip harder or start the discriminator later.",
                bad,
            )
        return not bad

    @property
    def one_more_is_too_many(self) -> bool:
        """Whether the next update that goes wrong ends the training."""
        return max(self._in_a_row.values(), default=0) == _PATIENCE - 1

    def state(self) -> Config:
        """For a checkpoint."""
        return {"total": self.total, "in_a_row": dict(self._in_a_row)}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up where ``state`` left off."""
        self.total, self._in_a_row = state["total"], dict(state["in_a_row"])


class Stopwatch:
    """Seconds of training: evaluation and pictures stand apart, and a resumed run goes on counting."""

    def __init__(self) -> None:
        self._before = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Run, unless already running."""
        self._since = time.perf_counter() if self._since is None else self._since

    def stop(self) -> None:
        """Stand still."""
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
        """Standing still inside the block."""
        running = self._since is not None
        self.stop()
        try:
            yield
        finally:
            if running:
                self.start()
