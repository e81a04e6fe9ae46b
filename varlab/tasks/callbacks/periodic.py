"""Callbacks that act every so many images."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

from lightning.pytorch import Callback, Trainer

from varlab.tasks.base import Task
from varlab.tasks.validation import as_metrics
from varlab.types import Batch, VarlabError


def passes(every: int | None, before: int, after: int, total: int) -> bool:
    """Whether a multiple of ``every`` lies in (before, after], or the training ends there; None: only the end."""
    return after >= total or (every is not None and before // every < after // every)


class Periodic(Callback):
    """Acts after the update that passes each multiple of ``every`` images, and after the last one (None: only then)."""

    def __init__(self, *, every: int | None):
        if every is not None and every < 1:
            raise VarlabError(
                f"{type(self).__name__} every {every} images: give at least 1, or null for only at the end."
            )
        self.every = every

    @abstractmethod
    def act(self, trainer: Trainer, task: Task) -> None:
        """The action itself, called on every rank."""

    def on_train_start(self, trainer: Trainer, task: Task) -> None:
        """Make up for the action if the run was stopped after the last update and before its actions."""
        self._act_if_due(trainer, task)

    def on_train_batch_end(self, trainer: Trainer, task: Task, outputs: object, batch: Batch, batch_idx: int) -> None:
        """Act after the update if it is due."""
        self._act_if_due(trainer, task)

    def publish(self, trainer: Trainer, task: Task, values: Mapping[str, float]) -> None:
        """Hand the numbers of a log point to every callback and every logger, at once.

        ``self.log`` alone would reach the loggers after the last callback. But a checkpoint of this update must not exist
        before its numbers are written: a run killed in between would never write them. Nor does it reach them at the start
        of a training, where pending actions are made up for.
        """
        metrics = task.clock() | dict(values)
        task.log_dict(as_metrics(values), logger=False)
        trainer.logged_metrics.update(as_metrics(metrics))
        task.published |= metrics.keys()
        task.scores |= values
        if trainer.is_global_zero:
            for logger in trainer.loggers:
                logger.log_metrics(metrics, step=task.images)
                logger.save()

    def _act_if_due(self, trainer: Trainer, task: Task) -> None:
        if task.pending and passes(self.every, task.images - task.pending, task.images, task.total_images):
            self.act(trainer, task)
