"""Lightning's Trainer, reduced to a loop over updates on one device or several ranks."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

from varlab.tasks.base import Task
from varlab.tasks.callbacks.checkpoint import Checkpointer, Resume
from varlab.tasks.callbacks.stop import Stop
from varlab.tasks.distributed.collectives import RanksStrategy, cluster_environment
from varlab.types import Batch, VarlabError


class TrainingData(Protocol):
    """What ``fit`` needs of a data module."""

    batch: int  # global

    def train_loader(self, start: int, stop: int, rank: int, world: int) -> DataLoader[Batch]: ...


def fit(
    task: Task,
    data: TrainingData,
    *,
    images: int,
    resume: Resume,
    stop: Stop | None = None,
    callbacks: Sequence[Callback],
    checkpointer: Checkpointer,
    accelerator: str,
    devices: int,
    num_nodes: int,
    precision: str,
    deterministic: bool | str,
    threads: int | None,
    shard: bool = False,
) -> None:
    """Train a task until ``images`` were consumed (rounded up to whole batches), resuming where there is a checkpoint.

    accelerator, devices, num_nodes, precision, deterministic: as Lightning's Trainer takes them; precision may not be
    fp16 (updates are made here, without a gradient scaler). threads: of torch on the CPU, or None to leave them.
    shard: where there are several ranks, each holds a part of the weights and of all that belongs to them (FSDP).
    Several ranks must have been started already, with the environment that tells each who it is.
    Raises VarlabError, Stopped after a signal that ``stop`` hears, and KeyboardInterrupt where the person interrupts.
    """
    if precision.startswith("16"):
        raise VarlabError(
            f"trainer.precision={precision} needs a gradient scaler, which updates here do not have: use bf16-mixed or 32-true."
        )
    if shard:
        task.parts()  # refuses here what cannot be spread
    task.total_images = -(-images // data.batch) * data.batch
    ranked = devices * num_nodes > 1
    with _surroundings(threads):
        try:
            trainer = Trainer(
                accelerator=accelerator,
                devices=devices,
                num_nodes=num_nodes,
                strategy=RanksStrategy(spread=shard) if ranked else "auto",
                plugins=[cluster_environment()],  # for one rank too: Lightning's own for Slurm requeues jobs
                precision=precision,  # type: ignore[arg-type]  # a name from YAML; Lightning checks it
                deterministic=deterministic,  # type: ignore[arg-type]
                callbacks=[
                    resume,
                    *([] if stop is None else [stop]),
                    *callbacks,
                    checkpointer,
                ],  # its checkpoint comes after all that is done at an update
                max_epochs=1,
                logger=False,
                enable_checkpointing=False,
                enable_progress_bar=False,
                enable_model_summary=False,
                use_distributed_sampler=False,
                num_sanity_val_steps=0,
            )
        except (MisconfigurationException, ValueError, RuntimeError) as error:
            raise VarlabError(f"The trainer refuses its settings ({' '.join(str(error).split())}).") from error
        trainer.fit(task, datamodule=_Remaining(task, data))


class _Remaining(LightningDataModule):
    """The part of the stream that is still to be consumed once the task has been restored."""

    def __init__(self, task: Task, data: TrainingData):
        super().__init__()
        self._task, self._data = task, data

    def train_dataloader(self) -> Any:
        """From the clock to the end, on this rank. Once more the last batch, where only what follows it is left to do."""
        assert self.trainer is not None
        start, stop = self._task.images, self._task.total_images
        if start == stop and self._task.owed:
            start -= self._data.batch
        return self._data.train_loader(start, stop, self.trainer.global_rank, self.trainer.world_size)


@contextmanager
def _surroundings(threads: int | None) -> Iterator[None]:
    """Process-wide settings of a training, put back afterwards."""
    lightning = logging.getLogger("lightning.pytorch")
    level, before = lightning.level, torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    interrupt = signal.getsignal(signal.SIGINT)
    lightning.setLevel(logging.WARNING)  # it announces the devices it does not use
    torch.set_num_threads(threads or before)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # costs time for nothing
    try:
        with warnings.catch_warnings():
            for known in (
                "does not have many workers",
                "in eval mode at the start",
                "across ranks is zero",
                "`srun` command is available",
                "LeafSpec",
                "returned a view tensor",  # of spread weights, whose outputs nothing here writes to
            ):
                warnings.filterwarnings("ignore", message=f".*{known}.*")
            yield
    except SystemExit as stop:  # Lightning's way of passing on an interrupt, with further interrupts ignored
        raise KeyboardInterrupt from stop
    finally:
        lightning.setLevel(level)
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, interrupt)
