"""Stop at a signal: after an update common to all ranks, in a state from which training resumes with the same bits."""

from __future__ import annotations

import os
import signal
import threading
from functools import partial
from types import FrameType

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer

from varlab.errors import Stopped
from varlab.tasks.base import Task
from varlab.tasks.callbacks.checkpoint import Checkpointer
from varlab.tasks.distributed import collectives
from varlab.types import Batch

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
_HEARD = b"\nCtrl-C: saving after this update. Press it again to end immediately, without saving.\n"


class Stop(Callback):
    """Saves the state and raises ``Stopped`` soon after SIGTERM, SIGUSR2 or Ctrl-C. Must precede all periodic callbacks.

    The signal handler sets ``task.stop_request``. After every update the ranks share it, and all stop at the same update,
    before its log point, validation and pictures. ``task.pending`` is saved with the state, so the resumed run does these
    first. While they run, rank 0 reads the request between batches: it interrupts them and saves the same state; the other
    ranks end with it.

    Sharded weights can be saved only by all ranks together. Then rank 0 interrupts only what follows the last update, before
    which all ranks save; at any other update it finishes, and the run stops after the next one.
    """

    def __init__(self, *, checkpointer: Checkpointer):
        self._checkpointer = checkpointer
        self._saved = True  # whether the checkpoint holds the task's state before its pending actions

    def on_train_start(self, trainer: Trainer, task: Task) -> None:
        """Install the handlers. Lightning's own were installed before, and it restores the original ones at the end."""
        if threading.current_thread() is threading.main_thread():  # Python allows handlers only there
            # A shell lets what it starts in the background ignore Ctrl-C.
            interrupts = () if signal.getsignal(signal.SIGINT) is signal.SIG_IGN else (signal.SIGINT,)
            for number in (*SIGNALS, *interrupts):
                signal.signal(number, partial(_receive, trainer, task))
        self._allow_interrupts(trainer, task)

    def on_train_batch_end(self, trainer: Trainer, task: Task, outputs: object, batch: Batch, batch_idx: int) -> None:
        """Share the request between ranks; stop or go on."""
        number = _maximum(task.stop_request.number, task.device)
        self._saved = bool(number) or (task.is_sharded and task.images >= task.total_images)
        if self._saved:
            self._checkpointer.save(trainer, task)
        if number:
            trainer.strategy.barrier()  # the launcher ends the other ranks when one leaves
            raise Stopped(number, _where(task))
        self._allow_interrupts(trainer, task)

    def on_exception(self, trainer: Trainer, task: Task, exception: BaseException) -> None:
        """Save where rank 0 has interrupted an evaluation, which leaves the state as it was before."""
        if isinstance(exception, Stopped) and not self._saved:
            self._checkpointer.save(trainer, task)

    def _allow_interrupts(self, trainer: Trainer, task: Task) -> None:
        allowed = trainer.is_global_zero and (self._saved or not task.is_sharded)
        task.stop_request.interrupt_at = _where(task) if allowed else ""


def _receive(trainer: Trainer, task: Task, number: int, frame: FrameType | None) -> None:
    """Note a signal; answer Ctrl-C at once, since an update may take long."""
    task.stop_request.receive(number, frame)
    if number == signal.SIGINT and trainer.is_global_zero:
        os.write(2, _HEARD)  # a stream of Python's may be in the middle of another write


def _where(task: Task) -> str:
    return f"after {task.images} images, all saved"


def _maximum(number: int, device: torch.device) -> int:
    """The largest number of all ranks, equal on each."""
    if collectives.world_size() == 1:
        return number
    flag = torch.tensor([number], device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return int(flag)
