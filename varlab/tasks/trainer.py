"""A run of Lightning's Trainer on the clock of images: of a given length, resumed exactly, stopped by agreement."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from varlab.data import BaseDataModule
from varlab.tasks.base import Task
from varlab.tasks.callbacks.checkpoint import Checkpointer, Resume
from varlab.tasks.callbacks.stop import Stop
from varlab.tasks.distributed.strategy import RanksStrategy, cluster_environment
from varlab.types import Batch, VarlabError

_KNOWN_WARNINGS = (
    "does not have many workers",
    "in eval mode at the start",
    "`srun` command is available",
    "LeafSpec",
    "is smaller than the logging interval",
    "returned a view tensor",  # of sharded weights; nothing here writes to them
)


class TrainerData(LightningDataModule):
    """The batches of a data module, as Lightning's Trainer asks for them.

    A training epoch is a pass over as many images as the split holds. It begins where the task's clock stands (``images`` of
    the LightningModule), so a resumed training reads what it would have read.

    stop: the training is one epoch from the position ``start`` until this one instead (in images).
    """

    def __init__(self, data: BaseDataModule, *, stop: int | None = None):
        super().__init__()
        self._data, self._stop = data, stop
        self.start = 0

    def train_dataloader(self) -> Iterable[Batch]:
        """The batches of the trainer's ranks."""
        if self._stop is None:
            batch = self._data.batch
            length = -(-self._data.info.counts["train"] // batch)
            return _Passes(length, lambda: self._pass(length * batch))
        loader = self._data.train_loader(self.start, self._stop, *self._ranks())
        # If Lightning knew that there is no batch, it would not call on_train_start, where pending actions run.
        return loader if self.start < self._stop else iter(())

    def _pass(self, images: int) -> Iterable[Batch]:
        """An epoch of so many images, from the clock on; of a module without a clock, after the earlier epochs."""
        module = None if self.trainer is None else self.trainer.lightning_module
        epoch = 0 if self.trainer is None else self.trainer.current_epoch
        start = getattr(module, "images", epoch * images)
        return self._data.train_loader(start, start + images, *self._ranks())

    def val_dataloader(self) -> Iterable[Batch]:
        """The val split on the trainer's ranks, if there is one."""
        if not self._data.info.counts.get("val"):
            return []
        loader = self._data.eval_loader("val", *self._ranks())
        return _Passes(len(loader), lambda: loader)

    def _ranks(self) -> tuple[int, int]:
        trainer = self.trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)


class _Passes(Iterable[Batch]):
    """So many batches in every pass, each of a new loader. Not a DataLoader: Lightning would share its samples again."""

    def __init__(self, length: int, loader: Callable[[], Iterable[Batch]]):
        self._length, self._loader = length, loader

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Batch]:
        return iter(self._loader())


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
    task.total_images = -(-images // data.batch) * data.batch
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
            way_out = " Use trainer=cpu on a machine without a GPU." if "backend" in str(error) else ""
            raise VarlabError(f"The trainer refuses its settings ({' '.join(str(error).split())}).{way_out}") from error
        if made.gradient_clip_val is not None and not task.automatic_optimization:
            raise VarlabError(
                f"trainer.gradient_clip_val clips for one optimizer, and {type(task).__name__} makes its steps itself: leave "
                f"it out and use task.clip={made.gradient_clip_val}."
            )
        made.fit(task, datamodule=TrainerData(data, stop=task.total_images))


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
