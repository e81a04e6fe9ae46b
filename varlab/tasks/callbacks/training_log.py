"""Log points of the training itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Protocol

from lightning.pytorch import Trainer

from varlab.tasks.base import Task
from varlab.tasks.callbacks.journal import Journal
from varlab.tasks.callbacks.periodic import Periodic, passes
from varlab.tasks.distributed import collectives
from varlab.types import Fault


class BadSamples(Protocol):
    """Who counts the bad samples that this rank has met."""

    @property
    def faults(self) -> Mapping[Any, Fault]: ...
    @property
    def lost(self) -> int: ...
    def note(self, faults: Iterable[Fault]) -> None: ...  # raises VarlabError above what is allowed


class TrainingLog(Periodic):
    """Writes ``train/*``: means since the last log point, and what the task observes at the log point alone.

    bad: gives who counts the bad samples of training. What one rank has met, all know at the next log point.
    """

    def __init__(self, *, journal: Journal, every: int | None, bad: Callable[[], BadSamples | None] = lambda: None):
        super().__init__(every=every)
        self._journal, self._bad = journal, bad
        self._mark = (0.0, 0)  # seconds and images at the last log point

    def on_train_start(self, trainer: Trainer, task: Any) -> None:
        """Throughput counts from here."""
        task.stopwatch.start()
        self._mark = (task.stopwatch.seconds, task.images)

    def on_train_batch_start(self, trainer: Trainer, task: Any, batch: Any, batch_idx: int) -> None:
        """Tell the task whether this update ends in a log point."""
        after = task.images + len(batch) * collectives.world_size()
        task.observing = passes(self.every, task.images, after, task.total_images)

    def act(self, trainer: Trainer, task: Task) -> None:
        """One line. Every rank takes the values, so that all start afresh."""
        values = task.log_values()
        seconds, images = self._mark
        self._mark = (task.stopwatch.seconds, task.images)
        rate = (task.images - images) / max(self._mark[0] - seconds, 1e-9)
        values["train/images_per_second"] = rate
        values["train/eta_seconds"] = (task.total_images - task.images) / max(rate, 1e-9)
        watch = self._bad()
        if watch is not None:
            for others in collectives.gather_objects(list(watch.faults.values())):
                watch.note(others)
            values["train/bad_samples"] = float(watch.lost)
        if trainer.is_global_zero:
            self._journal.write(task, values)

    def teardown(self, trainer: Trainer, task: Any, stage: str) -> None:
        """However training ended: the events file is closed."""
        self._journal.close()
