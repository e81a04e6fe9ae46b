"""How fast a training goes on this machine: for budgets of time, which become a number of images once and for all."""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer

from varlab.cli.kinds import KINDS
from varlab.cli.rundir import RunDirectory
from varlab.data import Data
from varlab.rng import Rng
from varlab.tasks import fit
from varlab.tasks.callbacks import Checkpointer, Journal, Resume
from varlab.types import VarlabError

__all__ = ["images_per_second"]

BATCHES, WARM_UP = 32, 8  # of the trial; the first updates allocate and compile


class _Clock(Callback):
    """When each update was done."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, trainer: Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Note the time."""
        self.times.append(time.perf_counter())


def images_per_second(config: dict[str, Any], auto: dict[str, Any], data: Data, directory: RunDirectory) -> float:
    """The median pace of a trial: the very training from its beginning, on a copy that leaves nothing behind.

    Raises:
        VarlabError: several ranks, which would have to agree.
    """
    settings = {key: value for key, value in config["trainer"].items() if key != "micro_batch"} | auto
    if settings["devices"] != 1 or settings["num_nodes"] != 1:
        raise VarlabError("budget.seconds is for one process: give several ranks budget.images or budget.flops.")
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
    spent = [b - a for a, b in zip(clock.times[WARM_UP:], clock.times[WARM_UP + 1 :], strict=False)]
    return data.batch / statistics.median(spent)
