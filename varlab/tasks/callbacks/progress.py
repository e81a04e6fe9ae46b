"""Progress of a training, for the person who waits."""

from __future__ import annotations

import logging
import time

from lightning.pytorch import Callback, Trainer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from varlab.tasks.base import Task
from varlab.tasks.callbacks.checkpoint import Checkpointer
from varlab.types import Batch

_BAR_SECONDS = 0.1  # between two states of the bar
_SOON = 3.0  # seconds until the first line
_log = logging.getLogger(__name__)


class ProgressBar(Callback):
    """A Rich bar with throughput, time left and loss on a terminal; elsewhere a log line every ``line_seconds``.

    Both begin with what is being waited for, and say when ``checkpoint.minutes`` saves next.
    """

    def __init__(self, *, console: Console, line_seconds: float):
        self._console, self._line_seconds = console, line_seconds
        self._bar: Progress | None = None
        self._start = (0.0, 0)
        self._shown = 0.0

    def setup(self, trainer: Trainer, task: Task, stage: str) -> None:
        """Open the bar on rank 0, before the model is moved and a state is read."""
        if trainer.is_global_zero and self._console.is_terminal:
            columns = (BarColumn(), TaskProgressColumn(), TextColumn("{task.description}"))
            times = (TimeElapsedColumn(), TextColumn("passed"), TimeRemainingColumn(), TextColumn("left"))
            self._bar = Progress(*columns, *times, console=self._console)
            self._bar.add_task("preparing", total=None)
            self._bar.start()

    def on_train_start(self, trainer: Trainer, task: Task) -> None:
        """Say that no batch has come yet; the pace counts from here."""
        self._start = (time.perf_counter(), task.images)
        self._shown = self._start[0] - max(self._line_seconds - _SOON, 0.0)
        if trainer.is_global_zero and task.images < task.total_images:
            self._wait_for("waiting for the first batch", task)

    def on_train_batch_start(self, trainer: Trainer, task: Task, batch: Batch, batch_idx: int) -> None:
        """Say that the first update has begun: it takes longer than the others."""
        if batch_idx == 0 and trainer.is_global_zero:
            self._wait_for("first update, which takes longer", task)

    def on_validation_start(self, trainer: Trainer, task: Task) -> None:
        """Say why no update follows."""
        if self._bar is not None:
            self._wait_for("validating", task)

    def on_train_batch_end(self, trainer: Trainer, task: Task, outputs: object, batch: Batch, batch_idx: int) -> None:
        """Show the present state if the last one is old enough: to read the loss waits for the device."""
        pause = self._line_seconds if self._bar is None else _BAR_SECONDS
        is_last = task.images >= task.total_images and self._bar is not None
        if not trainer.is_global_zero or (time.perf_counter() - self._shown <= pause and not is_last):
            return
        self._shown = time.perf_counter()
        text = self._describe(trainer, task)
        if self._bar is not None:
            self._update(text, task)
        elif task.is_endless:
            _log.info("%d images, %s", task.images, text)
        else:
            _log.info("%d of %d images, %s", task.images, task.total_images, text)

    def on_exception(self, trainer: Trainer, task: Task, exception: BaseException) -> None:
        """Close the bar, so that the error stands below it."""
        self.teardown(trainer, task, "fit")

    def teardown(self, trainer: Trainer, task: Task, stage: str) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _wait_for(self, what: str, task: Task) -> None:
        if self._bar is None:
            _log.info("%s", what)
        else:
            self._update(what, task)
            self._bar.refresh()

    def _update(self, text: str, task: Task) -> None:
        assert self._bar is not None
        total = None if task.is_endless else task.total_images
        self._bar.update(self._bar.task_ids[0], completed=task.images, total=total, description=text)

    def _describe(self, trainer: Trainer, task: Task) -> str:
        seconds, images = self._start
        rate = (task.images - images) / max(time.perf_counter() - seconds, 1e-9)
        parts = [f"{rate:,.0f} images/s", f"loss {task.last_loss:.4g}"]
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set, but not declared
        for left in (callback.seconds_left for callback in callbacks if isinstance(callback, Checkpointer)):
            parts += [] if left is None else [f"saves in {left:.0f} s"]
        return ", ".join([*(["trial"] if task.is_endless else []), *parts])
