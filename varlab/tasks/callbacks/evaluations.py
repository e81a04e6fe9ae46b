"""Evaluations during training, all on averaged weights: validation, scores of samples, pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from varlab.tasks.base import Task
from varlab.tasks.callbacks.journal import Journal
from varlab.tasks.callbacks.periodic import Periodic
from varlab.types import Batch


class Validation(Periodic):
    """``val/*`` over a loader. loader: called as ``loader(rank, world)`` for a rank's share of the split."""

    def __init__(self, *, journal: Journal, loader: Callable[[int, int], Iterable[Batch]], every: int | None):
        super().__init__(every=every)
        self._journal, self._loader = journal, loader

    def act(self, trainer: Trainer, task: Task) -> None:
        """Validate on every rank; rank 0 writes."""
        values = task.validate(self._loader(trainer.global_rank, trainer.world_size))
        if trainer.is_global_zero:
            self._journal.write(task, values)


class InTrainingScores(Periodic):
    """FID and the like. scores: called on every rank with averaged weights in the model; gives numbers by name."""

    def __init__(self, *, journal: Journal, scores: Callable[[], Mapping[str, float]], every: int | None):
        super().__init__(every=every)
        self._journal, self._scores = journal, scores

    def act(self, trainer: Trainer, task: Task) -> None:
        """Score on every rank; rank 0 writes ``val/<name>``."""
        with task.evaluation(), _float32(task):
            values = {f"val/{name}": float(value) for name, value in self._scores().items()}
        if trainer.is_global_zero:
            self._journal.write(task, values)


class Pictures(Periodic):
    """Named pictures. draw: called on rank 0 with averaged weights in the model; gives ``img_u8_3HW`` by name."""

    def __init__(self, *, journal: Journal, draw: Callable[[], Mapping[str, Tensor]], every: int | None):
        super().__init__(every=every)
        self._journal, self._draw = journal, draw

    def act(self, trainer: Trainer, task: Task) -> None:
        """Rank 0 alone: drawing may not wait for others, but for the weights, where these are spread over them."""
        pictures: Mapping[str, Tensor] = {}
        if trainer.is_global_zero or task.is_spread:
            with task.evaluation(), _float32(task):
                pictures = self._draw() if trainer.is_global_zero else pictures
        for name, picture in pictures.items():
            self._journal.picture(task, name, picture)


def _float32(task: Task) -> torch.autocast:
    """Scores and pictures look at float32 models, whatever precision trains them."""
    return torch.autocast(task.device.type, enabled=False)
