"""The averaged weights at the best value of a score."""

from __future__ import annotations

import logging
import math
from pathlib import Path

from lightning.pytorch import Trainer

from varlab.checkpoint import read_metadata, save_weights
from varlab.tasks.base import Task
from varlab.tasks.distributed import fsdp

log = logging.getLogger(__name__)


class BestWeights:
    """Keeps the averaged weights of the update with the best value of ``val/<score>``.

    path: of the weights; the file's header holds the score's name, its value and the images of the training. best: min or max.
    """

    def __init__(self, *, path: Path, score: str, best: str):
        self._path, self._score, self._sign = path, score, -1.0 if best == "max" else 1.0
        self._value: float | None = None

    def load(self, task: Task) -> None:
        """Take up the value of an earlier attempt, unless it belongs to updates that the resumed training makes again."""
        self._value = None
        if self._path.is_file():
            kept = read_metadata(self._path)
            if kept.get("score") == self._score and int(kept["images"]) <= task.images:
                self._value = float(kept["value"])

    def keep(self, trainer: Trainer, task: Task) -> None:
        """Write the weights if the update's score is the best one so far. All ranks must call it."""
        value = task.scores.get(f"val/{self._score}")
        if value is None:
            return
        better = math.isfinite(value) and (self._value is None or self._sign * value < self._sign * self._value)
        if not trainer.strategy.broadcast(better):  # ranks of different devices may differ in the last bits
            return
        self._value = value
        state = fsdp.full_state(task.ema.weights(task.model), keep=trainer.is_global_zero)
        if trainer.is_global_zero:
            about = {"images": str(task.images), "score": self._score, "value": repr(value)}
            save_weights(self._path, state, about)

    def end(self) -> None:
        """Warn if no update had the score."""
        if self._value is None:
            log.warning("no val/%s was logged, so there is no %s", self._score, self._path.name)
