"""Progress of a training, for the person who waits."""

from __future__ import annotations

import logging
import time

from lightning.pytorch import Callback, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from varlab.tasks.base import Task
from varlab.types import Batch

_BAR_SECONDS = 0.1  # between two states of the bar
_log = logging.getLogger(__name__)


class ProgressBar(Callback):
    """A Rich bar with throughput, time left and loss on a terminal; elsewhere a log line every ``line_seconds``."""

    def __init__(self, *, console: Console, line_seconds: float):
        self._console, self._line_seconds = console, line_seconds
        self._bar: Progress | None = None
        self._start = (0.0, 0)
        self._shown = 0.0

    def on_train_start(self, trainer: Trainer, task: Task) -> None:
        """Open the bar on rank 0."""
        self._start = (time.perf_counter(), task.images)
        self._shown = self._start[0]
        if trainer.is_global_zero and self._console.is_terminal:
            columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"))
            times = (TimeElapsedColumn(), TextColumn("passed"), TimeRemainingColumn(), TextColumn("left"))
            self._bar = Progress(*columns, *times, console=self._console)
            self._bar.add_task("", total=task.total_images, completed=task.images)
            self._bar.start()

    def on_train_batch_end(self, trainer: Trainer, task: Task, outputs: object, batch: Batch, batch_idx: int) -> None:
        """Show the present state if the last one is old enough: to read the loss waits for the device."""
        pause = self._line_seconds if self._bar is None else _BAR_SECONDS
        is_last = task.images >= task.total_images and self._bar is not None
        if not trainer.is_global_zero or (time.perf_counter() - self._shown <= pause and not is_last):
            return
        self._shown = time.perf_counter()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=task.images, description=self._describe(task))
        else:
            _log.info("%d of %d images, %s", task.images, task.total_images, self._describe(task))

    def teardown(self, trainer: Trainer, task: Task, stage: str) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _describe(self, task: Task) -> str:
        seconds, images = self._start
        rate = (task.images - images) / max(time.perf_counter() - seconds, 1e-9)
        return f"{rate:,.0f} images/s, loss {task.last_loss:.4g}"
