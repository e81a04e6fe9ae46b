"""Stopping at a signal: at a step common to all ranks, with a state from which the same bits come."""

from __future__ import annotations

import copy
import signal
import threading
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer
from torch.nn.modules.module import register_module_forward_pre_hook

from varlab.checkpoint import save_checkpoint
from varlab.config import Config
from varlab.errors import Stopped
from varlab.tasks.base import Task
from varlab.tasks.callbacks.periodic import Periodic
from varlab.tasks.distributed import collectives

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)


class Stop(Callback):
    """Saves the state and raises ``Stopped`` soon after SIGTERM or SIGUSR2; stands before all that acts at an update.

    The handler only sets a flag. After every update the ranks tell each other theirs, and all stop at the same one,
    before its log point, validation and pictures: the checkpoint says that these are owed, and the resumed run begins
    with them. Where the signal finds rank 0 at those, which may take long, it leaves them at the next call of a module,
    and saves the same checkpoint; the others wait for it, or end with it.

    Weights that are spread over the ranks can be saved by all of them only. Rank 0 then leaves only what is owed to the very
    last update, before which all have saved; from any other it stays, and the run stops after the next update.
    """

    def __init__(self, *, path: Path, config_hash: str):
        self._path, self._config_hash = path, config_hash
        self._number, self._images = 0, 0
        self._saved = False  # before what follows an update
        self._acting: Any = None  # the hook, while rank 0 is at what follows an update
        self._means: Config = {}  # not yet logged, as they were when it began

    def on_train_start(self, trainer: Trainer, task: Any) -> None:
        """From here on a signal finds something to save. A resumed run begins with what is owed to its last update.

        Lightning has put its own handlers in place before (they send messages to other ranks in the middle of
        anything), and afterwards brings back those that it found.
        """
        if threading.current_thread() is threading.main_thread():  # elsewhere Python takes no handlers
            for number in SIGNALS:
                signal.signal(number, self._hear)
        self._saved = task.is_spread  # what was restored is still there
        self._begin_acting(trainer, task)

    def teardown(self, trainer: Trainer, task: Any, stage: str) -> None:
        """However training ended."""
        self._end_acting()

    def _hear(self, number: int, frame: FrameType | None) -> None:
        self._number = number

    def on_train_batch_end(self, trainer: Trainer, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Agree, and stop or go on."""
        number = _highest(self._number, task.device)
        self._saved = task.is_spread and task.images >= task.total_images
        if number or self._saved:
            state = self._state(task, keep=trainer.is_global_zero)
            if trainer.is_global_zero:
                save_checkpoint(self._path, state)
        if number:
            trainer.strategy.barrier()  # whoever leaves first may end the others
            raise Stopped(number, f"after {task.images} images")
        self._begin_acting(trainer, task)

    def on_train_batch_start(self, trainer: Trainer, task: Any, batch: Any, batch_idx: int) -> None:
        """What is owed to the last update comes before the next one, which is finished before anything else happens."""
        if task.owed:
            task.last_batch, task.owed = task.owed, 0
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, Periodic):
                    callback.on_train_batch_end(trainer, task, None, batch, batch_idx)
        self._end_acting()

    def _begin_acting(self, trainer: Trainer, task: Any) -> None:
        if trainer.is_global_zero and (self._saved or not task.is_spread):
            self._images = task.images
            self._means = copy.deepcopy(task.means.state())
            self._acting = register_module_forward_pre_hook(self._look_up)

    def _end_acting(self) -> None:
        if self._acting is not None:
            self._acting.remove()
            self._acting = None

    def _look_up(self, module: Any, inputs: Any) -> None:
        """Between two modules all is in order: the averaged weights are in the model, and will be put back."""
        if self._number:
            raise _Interrupted(self._number, f"after {self._images} images")

    def on_exception(self, trainer: Trainer, task: Any, exception: BaseException) -> None:
        """Of rank 0, where it has left what follows an update."""
        self._end_acting()
        if isinstance(exception, _Interrupted):
            task.means.load_state(self._means)
            if not self._saved:
                save_checkpoint(self._path, self._state(task, keep=True))

    def _state(self, task: Task, *, keep: bool) -> Config:
        """Owed are the images of the last update, none to a run that has made none since it was restored in order."""
        return {"config_hash": self._config_hash, **task.state(keep=keep), "owed": task.last_batch}


class _Interrupted(Stopped):
    """Stopped by rank 0 alone, with the state not yet saved."""


def _highest(number: int, device: torch.device) -> int:
    """The ranks' greatest: equal on all."""
    if collectives.world_size() == 1:
        return number
    flag = torch.tensor([number], device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return int(flag)
