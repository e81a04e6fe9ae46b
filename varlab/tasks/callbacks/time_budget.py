"""The length of a training that is given in seconds: its first updates measure the machine, and stay part of it."""

from __future__ import annotations

import bisect
import logging
import math
import statistics
from collections.abc import Callable

from lightning.pytorch import Callback, Trainer

from varlab.tasks.base import Task
from varlab.tasks.callbacks.checkpoint import Checkpointer
from varlab.tasks.distributed import collectives
from varlab.types import Batch

_log = logging.getLogger(__name__)
_MOST, _LEAST = 16, 3  # updates of a trial
_SHARE = 0.1  # of the seconds, after which a trial has enough updates if it has the least


class TimeBudget(Callback):
    """Decides ``task.total_images`` after a trial: so many images as fit into the rest of the seconds at its median pace.

    Must follow Stop and precede all periodic callbacks. Until the decision the learning rate is that of an endless training.
    checkpointer: saves the state of the decision, so that a killed run repeats no trial. decided: called on every rank after
    that, with the images.
    """

    def __init__(self, *, seconds: float, checkpointer: Checkpointer, decided: Callable[[int], None]):
        self._seconds, self._checkpointer, self._decided = seconds, checkpointer, decided
        self._times: list[float] = []  # seconds of training at the end of each update, the mean of all ranks

    def on_train_start(self, trainer: Trainer, task: Task) -> None:
        """Announce the trial."""
        _log.info(
            "budget.seconds=%g: the first updates (%d at most) measure this machine, and are kept", self._seconds, _MOST
        )

    def on_train_batch_end(self, trainer: Trainer, task: Task, outputs: object, batch: Batch, batch_idx: int) -> None:
        """Measure until the trial has enough updates; end the training after the last one."""
        if task.is_endless:
            self._times.append(statistics.fmean(collectives.gather_objects(task.stopwatch.seconds)))
            if len(self._times) >= (_LEAST if self._times[-1] > _SHARE * self._seconds else _MOST):
                self._decide(trainer, task)
        if task.images >= task.total_images:
            trainer.should_stop = True  # the loader does not end by itself

    def _decide(self, trainer: Trainer, task: Task) -> None:
        measured = self._times[max(len(self._times) // 4, 1) - 1 :]  # the first updates allocate and compile
        pace = task.pending / statistics.median(b - a for a, b in zip(measured, measured[1:], strict=False))
        updates = _affordable(task, pace, self._seconds - self._times[-1])
        task.total_images = task.images + updates * task.pending
        _log.info("%.0f images a second: %g seconds are %d images", pace, self._seconds, task.total_images)
        self._checkpointer.save(trainer, task)
        self._decided(task.total_images)


def _affordable(task: Task, pace: float, seconds: float) -> int:
    """How many more updates fill the seconds: one of more FLOPs, as when a discriminator begins, takes longer than the last.

    pace: of the last updates, in images a second.
    """
    begin, batch = task.images, task.pending
    most = max(math.ceil(seconds * pace / batch), 0)
    rate = (task.flops_at(begin) - task.flops_at(begin - batch)) / batch * pace

    def needed(updates: int) -> float:
        return (task.flops_at(begin + updates * batch) - task.flops_at(begin)) / rate

    return bisect.bisect_left(range(most), seconds, key=needed) if rate else most
