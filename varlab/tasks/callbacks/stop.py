"""Stop at a signal: after an update common to all ranks, in a state from which training resumes with the same bits."""

from __future__ import annotations

import signal
import threading

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, Trainer

from varlab.errors import Stopped
from varlab.tasks.base import Task
from varlab.tasks.callbacks.checkpoint import Checkpointer
from varlab.tasks.distributed import collectives
from varlab.types import Batch

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)


class Stop(Callback):
    """Saves the state and raises ``Stopped`` soon after SIGTERM or SIGUSR2. Must precede all periodic callbacks.

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
            for number in SIGNALS:
                signal.signal(number, task.stop_request.receive)
        self._allow_interrupts(trainer, task)

    def on_train_batch_end(self, trainer: Trainer, task: Task, outputs: object, batch: Batch, batch_idx: int) -> None:
        """Share the request between ranks; stop or go on."""
        number = _maximum(task.stop_request.number, task.device)
        self._saved = bool(number) or (task.is_sharded and task.images >= task.total_images)
        if self._saved:
            self._checkpointer.save(trainer, task)
        if number:
            trainer.strategy.barrier()  # the launcher ends the other ranks when one leaves
            raise Stopped(number, f"after {task.images} images")
        self._allow_interrupts(trainer, task)

    def on_exception(self, trainer: Trainer, task: Task, exception: BaseException) -> None:
        """Save where rank 0 has interrupted an evaluation, which leaves the state as it was before."""
        if isinstance(exception, Stopped) and not self._saved:
            self._checkpointer.save(trainer, task)

    def _allow_interrupts(self, trainer: Trainer, task: Task) -> None:
        allowed = trainer.is_global_zero and (self._saved or not task.is_sharded)
        task.stop_request.interrupt_at = f"after {task.images} images" if allowed else ""


def _maximum(number: int, device: torch.device) -> int:
    """The largest number of all ranks, equal on each."""
    if collectives.world_size() == 1:
        return number
    flag = torch.tensor([number], device=device)
    dist.all_reduce(flag, op=dist.ReduceOp.MAX)
    return int(flag)
