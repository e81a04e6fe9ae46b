"""Evaluations during training, all with averaged weights: validation, scores of samples, pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from lightning.pytorch import Trainer
from torch import Tensor

from varlab.tasks.base import Task
from varlab.tasks.callbacks.journal import Journal
from varlab.tasks.callbacks.periodic import Periodic
from varlab.types import Batch


class Validation(Periodic):
    """``val/*`` of a split. loader: called as ``loader(rank, world)``, returns the batches of a rank."""

    def __init__(self, *, journal: Journal, loader: Callable[[int, int], Iterable[Batch]], every: int | None):
        super().__init__(every=every)
        self._journal, self._loader = journal, loader

    def act(self, trainer: Trainer, task: Task) -> None:
        """Validate on every rank; rank 0 writes."""
        values = task.validate(self._loader(trainer.global_rank, trainer.world_size))
        if trainer.is_global_zero:
            self._journal.write(task, values)


class InTrainingScores(Periodic):
    """FID and other scores. scores: called on every rank with averaged weights in the model, returns numbers by name."""

    def __init__(self, *, journal: Journal, scores: Callable[[], Mapping[str, float]], every: int | None):
        super().__init__(every=every)
        self._journal, self._scores = journal, scores

    def act(self, trainer: Trainer, task: Task) -> None:
        """Score on every rank, in float32 whatever the training's precision; rank 0 writes ``val/<name>``."""
        with task.evaluation():
            values = {f"val/{name}": float(value) for name, value in self._scores().items()}
        if trainer.is_global_zero:
            self._journal.write(task, values)


class Pictures(Periodic):
    """Named pictures. draw: called on rank 0 with averaged weights in the model, returns ``img_u8_3HW`` by name."""

    def __init__(self, *, journal: Journal, draw: Callable[[], Mapping[str, Tensor]], every: int | None):
        super().__init__(every=every)
        self._journal, self._draw = journal, draw

    def act(self, trainer: Trainer, task: Task) -> None:
        """Draw on rank 0 alone, in float32; the other ranks only take part in gathering sharded weights."""
        pictures: Mapping[str, Tensor] = {}
        if trainer.is_global_zero or task.is_sharded:
            with task.evaluation():
                pictures = self._draw() if trainer.is_global_zero else pictures
        for name, picture in pictures.items():
            self._journal.picture(task, name, picture)
