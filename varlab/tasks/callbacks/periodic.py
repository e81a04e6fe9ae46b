"""Callbacks that act on the clock of images."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from lightning.pytorch import Callback, Trainer

from varlab.tasks.base import Task
from varlab.types import VarlabError


def passes(every: int | None, before: int, after: int, total: int) -> bool:
    """Whether a multiple of ``every`` lies in (before, after], or the training ends there; None waits for the end."""
    return after >= total or (every is not None and before // every < after // every)


class Periodic(Callback):
    """Acts after the update that passes each multiple of ``every`` images, and after the last one."""

    def __init__(self, *, every: int | None):
        if every is not None and every < 1:
            raise VarlabError(
                f"{type(self).__name__} every {every} images: give at least 1, or null for only at the end."
            )
        self.every = every

    @abstractmethod
    def act(self, trainer: Trainer, task: Task) -> None:
        """What is to be done; called on every rank."""

    def on_train_batch_end(self, trainer: Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """After each update."""
        if passes(self.every, task.images - task.last_batch, task.images, task.total_images):
            self.act(trainer, task)
