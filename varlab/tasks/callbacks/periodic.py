"""Callbacks that act every so many images."""

from __future__ import annotations

from abc import abstractmethod

from lightning.pytorch import Callback, Trainer

from varlab.tasks.base import Task
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

    def _act_if_due(self, trainer: Trainer, task: Task) -> None:
        if task.pending and passes(self.every, task.images - task.pending, task.images, task.total_images):
            self.act(trainer, task)
