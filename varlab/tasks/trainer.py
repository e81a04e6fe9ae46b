"""Lightning's Trainer, set up for updates that a task makes by itself, on one device or several ranks."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from varlab.data import BaseDataModule
from varlab.tasks.base import Task
from varlab.tasks.callbacks.checkpoint import Checkpointer, Resume
from varlab.tasks.callbacks.stop import Stop
from varlab.tasks.distributed.collectives import RanksStrategy, cluster_environment
from varlab.types import Batch, VarlabError

_KNOWN_WARNINGS = (
    "does not have many workers",
    "in eval mode at the start",
    "`srun` command is available",
    "LeafSpec",
    "returned a view tensor",  # of sharded weights; nothing here writes to them
)


def fit(
    task: Task,
    data: BaseDataModule,
    *,
    images: int,
    resume: Resume,
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
    """Train a task until ``images`` are consumed (rounded up to whole batches); resume if there is a checkpoint.

    accelerator, devices, num_nodes, precision, deterministic: as in Lightning's Trainer; precision must not be fp16
    (updates are made here, without a gradient scaler). threads: of torch on the CPU, or None for the present number.
    shard: shard the weights, and all that belongs to them, over the ranks (FSDP), if there are several. Several ranks must
    be running already, each with its number in the environment.
    Raises VarlabError, Stopped after SIGTERM or SIGUSR2, and KeyboardInterrupt after Ctrl-C.
    """
    if precision.startswith("16"):
        raise VarlabError(
            f"trainer.precision={precision} needs a gradient scaler, which updates here do not have: use bf16-mixed or 32-true."
        )
    if shard:
        task.shards()  # refuses a task that cannot be sharded
    task.total_images = -(-images // data.batch) * data.batch
    ranked = devices * num_nodes > 1
    with _process_settings(threads):
        try:
            trainer = Trainer(
                accelerator=accelerator,
                devices=devices,
                num_nodes=num_nodes,
                strategy=RanksStrategy(shard=task.shard if shard else None) if ranked else "auto",
                plugins=[cluster_environment()],  # for one rank too: Lightning's own for Slurm requeues jobs
                precision=precision,  # type: ignore[arg-type]  # a name from YAML; Lightning checks it
                deterministic=deterministic,  # type: ignore[arg-type]
                callbacks=[resume, Stop(checkpointer=checkpointer), *callbacks, checkpointer],
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
    """The part of the training stream that is not yet consumed, read after the task is restored."""

    def __init__(self, task: Task, data: BaseDataModule):
        super().__init__()
        self._task, self._data = task, data

    def train_dataloader(self) -> Iterable[Batch]:
        """This rank's batches from the clock to the end of the training."""
        assert self.trainer is not None
        start, stop = self._task.images, self._task.total_images
        loader = self._data.train_loader(start, stop, self.trainer.global_rank, self.trainer.world_size)
        # Lightning skips on_train_start, where pending actions run, if it knows that there is no batch
        return loader if start < stop else iter(())


@contextmanager
def _process_settings(threads: int | None) -> Iterator[None]:
    """Set the process-wide settings of a training, and restore them afterwards."""
    lightning = logging.getLogger("lightning.pytorch")
    level, before = lightning.level, torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    interrupt = signal.getsignal(signal.SIGINT)
    lightning.setLevel(logging.WARNING)  # below that it announces the devices that it does not use
    torch.set_num_threads(threads or before)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # takes time for nothing
    try:
        with warnings.catch_warnings():
            for known in _KNOWN_WARNINGS:
                warnings.filterwarnings("ignore", message=f".*{known}.*")
            yield
    except SystemExit as stop:  # Lightning turns Ctrl-C into this and ignores further ones
        raise KeyboardInterrupt from stop
    finally:
        lightning.setLevel(level)
        torch.set_num_threads(before)
        torch.use_deterministic_algorithms(deterministic)
        torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            signal.signal(signal.SIGINT, interrupt)
