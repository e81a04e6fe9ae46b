"""How fast a training goes on this machine: for budgets of time, which become a number of images once and for all."""

from __future__ import annotations

import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from varlab.config import Config
from varlab.data import BaseDataModule
from varlab.recipe.trainings import KINDS
from varlab.rng import Rng
from varlab.run.directory import RunDirectory
from varlab.tasks import fit
from varlab.tasks.callbacks import Checkpointer, Journal, Resume
from varlab.tasks.distributed import collectives

__all__ = ["images_per_second"]

BATCHES, WARM_UP = 32, 8  # of the trial; the first updates allocate and compile


class _Clock(Callback):
    """Seconds that an update takes: each rank's median, and the mean of these, the same on all."""

    def __init__(self) -> None:
        self._times: list[float] = []
        self.seconds = math.nan

    def on_train_batch_end(self, trainer: Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note the time."""
        self._times.append(time.perf_counter())

    def on_train_end(self, trainer: Trainer, task: Any) -> None:
        """Agree."""
        spent = [b - a for a, b in zip(self._times[WARM_UP:], self._times[WARM_UP + 1 :], strict=False)]
        self.seconds = statistics.fmean(collectives.gather_objects(statistics.median(spent)))


def images_per_second(config: Config, auto: Config, data: BaseDataModule, directory: RunDirectory) -> float:
    """The median pace of a trial: the very training from its beginning, on a copy that leaves nothing behind; on all ranks.

    Raises:
        Stopped: by a signal, which finds nothing to save.
    """
    settings = {key: value for key, value in config["trainer"].items() if key != "micro_batch"} | auto
    plan, clock = KINDS[config["kind"]](config, data, Rng(config["seed"]), directory), _Clock()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        checkpoint, journal = folder / "last.ckpt", Journal(directory=folder, tensorboard=False)
        resume = Resume(
            checkpoint=checkpoint,
            progress=folder / "progress",
            config_hash="",
            journal=journal,
            on_resume=lambda _: None,
        )
        checkpointer = Checkpointer(path=checkpoint, every=1 << 60, config_hash="", weights=folder)
        fit(
            plan.task,
            data,
            images=BATCHES * data.batch,
            resume=resume,
            callbacks=[clock],
            checkpointer=checkpointer,
            **settings,
        )
    return data.batch / clock.seconds
