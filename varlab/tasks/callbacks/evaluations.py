"""Evaluations during training, all with averaged weights: validation, scores of samples, pictures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from itertools import islice

from lightning.pytorch import Callback, Trainer
from torch import Tensor

from varlab.tasks.base import Task
from varlab.tasks.callbacks.periodic import Periodic
from varlab.types import Batch


class Validation(Periodic):
    """``val/*`` of a split. loader: called as ``loader(rank, world)``, returns the batches of a rank.

    limit: as Lightning's ``limit_val_batches``: a number of batches (int), or a share of them (float).
    """

    def __init__(
        self, *, loader: Callable[[int, int], Iterable[Batch]], every: int | None, limit: int | float | None = None
    ):
        super().__init__(every=every)
        self._loader, self._limit = loader, limit

    def act(self, trainer: Trainer, task: Task) -> None:
        """Validate on every rank, and tell the Trainer's callbacks as if its own loop had: they stop or save by ``val/*``."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set, but not declared
        for callback in callbacks:
            callback.on_validation_start(trainer, task)
        self.publish(trainer, task, task.validate(self._batches(trainer)))
        for callback in callbacks:
            callback.on_validation_end(trainer, task)

    def _batches(self, trainer: Trainer) -> Iterable[Batch]:
        loader = self._loader(trainer.global_rank, trainer.world_size)
        if self._limit is None:
            return loader
        return islice(loader, self._limit if isinstance(self._limit, int) else int(self._limit * len(loader)))  # type: ignore[arg-type]


class InTrainingScores(Periodic):
    """FID and other scores. scores: called on every rank with averaged weights in the model, returns numbers by name."""

    def __init__(self, *, scores: Callable[[], Mapping[str, float]], every: int | None):
        super().__init__(every=every)
        self._scores = scores

    def act(self, trainer: Trainer, task: Task) -> None:
        """Score on every rank, in float32 whatever the training's precision; logs ``val/<name>``."""
        with task.evaluation():
            values = {f"val/{name}": float(value) for name, value in self._scores().items()}
        self.publish(trainer, task, values)


class Pictures(Periodic):
    """Named pictures, for every logger that has ``log_image`` as Lightning's WandbLogger has.

    draw: called on rank 0 with averaged weights in the model, returns ``img_u8_3HW`` by name.
    """

    def __init__(self, *, draw: Callable[[], Mapping[str, Tensor]], every: int | None):
        super().__init__(every=every)
        self._draw = draw

    def act(self, trainer: Trainer, task: Task) -> None:
        """Draw on rank 0 alone, in float32; the other ranks only take part in gathering sharded weights."""
        pictures: Mapping[str, Tensor] = {}
        if trainer.is_global_zero or task.is_sharded:
            with task.evaluation():
                pictures = self._draw() if trainer.is_global_zero else pictures
        for name, img_u8_3HW in pictures.items():
            img_u8_HW3 = img_u8_3HW.permute(1, 2, 0).cpu().contiguous().numpy()
            for logger in trainer.loggers:
                if hasattr(logger, "log_image"):
                    logger.log_image(key=name, images=[img_u8_HW3], step=task.images)
