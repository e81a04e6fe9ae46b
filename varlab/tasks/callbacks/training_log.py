"""Log points of the training itself."""

from __future__ import annotations

from collections.abc import Callable

from lightning.pytorch import Trainer

from varlab.data.faults import FaultCounter
from varlab.tasks.base import Task
from varlab.tasks.callbacks.periodic import Periodic, passes
from varlab.tasks.distributed import collectives
from varlab.types import Batch


class TrainingLog(Periodic):
    """Logs ``train/*``: means since the last log point, and values that the task computes for a log point alone.

    bad: returns the counter of bad training samples. The ranks share their bad samples at every log point.
    """

    def __init__(self, *, every: int | None, bad: Callable[[], FaultCounter | None] = lambda: None):
        super().__init__(every=every)
        self._bad = bad
        self._mark = (0.0, 0)  # seconds and images at the last log point

    def on_train_start(self, trainer: Trainer, task: Task) -> None:
        """Log a pending log point; throughput counts from here."""
        task.logs_itself = False
        super().on_train_start(trainer, task)
        self._mark = (task.stopwatch.seconds, task.images)

    def teardown(self, trainer: Trainer, task: Task, stage: str) -> None:
        """Leave logging to the task again."""
        task.logs_itself = True

    def on_train_batch_start(self, trainer: Trainer, task: Task, batch: Batch, batch_idx: int) -> None:
        """Tell the task, and the Trainer with its other callbacks, whether this update ends in a log point."""
        after = task.images + len(batch) * collectives.world_size()
        task.observing = passes(self.every, task.images, after, task.total_images)
        trainer.log_every_n_steps = int(task.observing)  # type: ignore[attr-defined]  # 0: not now

    def act(self, trainer: Trainer, task: Task) -> None:
        """Log once."""
        values = task.log_values()
        seconds, images = self._mark
        self._mark = (task.stopwatch.seconds, task.images)
        rate = (task.images - images) / max(self._mark[0] - seconds, 1e-9)
        values["train/images_per_second"] = rate
        if not task.is_endless:
            values["train/eta_seconds"] = (task.total_images - task.images) / max(rate, 1e-9)
        bad = self._bad()
        if bad is not None:
            for others in collectives.gather_objects(list(bad.faults.values())):
                bad.note(others)
            values["train/bad_samples"] = float(bad.lost)
        self.publish(trainer, task, values)
