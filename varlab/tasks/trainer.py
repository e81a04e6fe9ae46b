"""A run of Lightning's Trainer on the clock of images: of a given length, resumed exactly, stopped by agreement."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from varlab.data import BaseDataModule
from varlab.tasks.base import Task
from varlab.tasks.callbacks.checkpoint import Checkpointer, Resume
from varlab.tasks.callbacks.stop import Stop
from varlab.tasks.distributed.collectives import RanksStrategy, cluster_environment
from varlab.types import VarlabError

_KNOWN_WARNINGS = (
    "does not have many workers",
    "in eval mode at the start",
    "`srun` command is available",
    "LeafSpec",
    "is smaller than the logging interval",
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
    trainer: Callable[..., Trainer],
    ranks: int,
    loggers: Sequence[Logger] = (),
    profiler: Profiler | None = None,
    threads: int | None = None,
    shard: bool = False,
) -> None:
    """Train a task until ``images`` are consumed (rounded up to whole batches); resume if there is a checkpoint.

    trainer: called with what follows from the others, returns Lightning's Trainer for so many ``ranks`` of this or other
    machines; several must be running already, each with its number in the environment. threads: of torch on the CPU, or None
    for the present number. shard: shard the weights, and all that belongs to them, over the ranks (FSDP).
    Raises VarlabError, Stopped after SIGTERM, SIGUSR2 or Ctrl-C, and KeyboardInterrupt after a second Ctrl-C.
    """
    if shard:
        task.shards()  # refuses a task that cannot be sharded
    task.total_images = data.stop = -(-images // data.batch) * data.batch
    with _process_settings(threads):
        try:
            made = trainer(
                strategy=RanksStrategy(shard=task.shard if shard else None) if ranks > 1 else "auto",
                plugins=[cluster_environment(ranks)],  # for one rank too: Lightning's own for Slurm requeues jobs
                callbacks=[resume, Stop(checkpointer=checkpointer), *callbacks, checkpointer],
                logger=list(loggers),
                profiler=profiler,
                max_epochs=1,
                # validations come by the clock: those who save or stop by them must not wait for the end of the epoch
                check_val_every_n_epoch=2,
                limit_val_batches=0,
                num_sanity_val_steps=0,
                enable_checkpointing=any(isinstance(callback, Checkpoint) for callback in callbacks),
                enable_progress_bar=any(isinstance(callback, ProgressBar) for callback in callbacks),
                use_distributed_sampler=False,
            )
        except (MisconfigurationException, RuntimeError) as error:
            raise VarlabError(f"The trainer refuses its settings ({' '.join(str(error).split())}).") from error
        if made.gradient_clip_val is not None and not task.automatic_optimization:
            raise VarlabError(
                f"trainer.gradient_clip_val clips for one optimizer, and {type(task).__name__} makes its steps itself: leave "
                f"it out and use task.clip={made.gradient_clip_val}."
            )
        made.fit(task, datamodule=data)


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
