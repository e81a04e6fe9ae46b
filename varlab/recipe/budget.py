"""The length of a training in images. A budget of time is converted once, by a short trial on this machine."""

from __future__ import annotations

import logging
import math
import statistics
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from pathlib import Path

from lightning.pytorch import Callback, Trainer

from varlab.config import Config
from varlab.data import BaseDataModule
from varlab.errors import Stopped
from varlab.recipe.plan import Plan
from varlab.recipe.preflight.budget_amount import asked_budget
from varlab.tasks import Task
from varlab.tasks.distributed import collectives
from varlab.types import Batch, VarlabError

__all__ = ["budget_images", "images_per_second"]

logger = logging.getLogger(__name__)

BATCHES, WARM_UP = 16, 4  # of the trial; the first updates allocate and compile


def budget_images(
    budget: Config,
    task: Task,
    batch: int,
    *,
    pace: Callable[[], float],
    known: int | None = None,
    updates: int = 0,
) -> int:
    """Convert ``conf/train.yaml``'s budget into images, rounded up to whole batches.

    pace: measures images a second; called only for a budget of seconds. known: the images of an earlier attempt, which
    a budget of seconds keeps. updates: how many at most; 0 for any number.
    """
    name, value = asked_budget(budget)
    if name == "flops" and not task.flops_at(batch):
        raise VarlabError(
            "budget.flops cannot be kept: no operation of this model can be counted. Use budget.images=N."
        )
    if name == "flops":
        batches = bisect_left(range(1 << 62), value, lo=1, key=lambda batches: task.flops_at(batches * batch))
    else:
        if name == "seconds" and not known:
            logger.info("budget.seconds=%g: a trial of %d updates measures this machine", value, BATCHES)
        images = value if name == "images" else known or _images_in(value, pace())
        batches = math.ceil(images / batch)
    return (min(batches, updates) if updates else batches) * batch


def _images_in(seconds: float, pace: float) -> int:
    images = max(1, round(seconds * pace))
    logger.info("%.0f images a second: %g seconds are %d images", pace, seconds, images)
    return images


class _Clock(Callback):
    """Measures the seconds of an update: each rank's median, and the mean of these, the same on all ranks."""

    def __init__(self, warm_up: int) -> None:
        self._warm_up = warm_up
        self._times: list[float] = []
        self.seconds = math.nan

    def on_train_batch_end(self, trainer: Trainer, task: Task, outputs: object, batch: Batch, batch_idx: int) -> None:  # type: ignore[override]
        """Note the time."""
        self._times.append(time.perf_counter())

    def on_train_end(self, trainer: Trainer, task: Task) -> None:  # type: ignore[override]
        """Agree with the other ranks."""
        times = self._times[self._warm_up :]
        spent = [b - a for a, b in zip(times, times[1:], strict=False)]
        self.seconds = statistics.fmean(collectives.gather_objects(statistics.median(spent)))


def images_per_second(
    plan: Plan,
    data: BaseDataModule,
    trainer: Config,
    *,
    batches: int = BATCHES,
    warm_up: int = WARM_UP,
    callbacks: Sequence[Callback] = (),
) -> float:
    """Measure the median pace of the first updates of a training, on all ranks, in a folder that is deleted afterwards.

    plan: one made for this trial, which trains its weights. trainer: as for its ``fit``. batches: of the trial; the first
    ``warm_up`` are not measured.
    Raises Stopped after a signal; there is nothing to save then.
    """
    clock = _Clock(warm_up)
    with tempfile.TemporaryDirectory() as name:
        try:
            plan.fit(data, Path(name), images=batches * data.batch, trainer=trainer, callbacks=[clock, *callbacks])
        except Stopped as stop:
            raise Stopped(stop.number, "before the first update") from stop
    return data.batch / clock.seconds
