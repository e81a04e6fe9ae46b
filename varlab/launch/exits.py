"""How a rank that Slurm has started leaves: in order, at a signal, or with an error that its batch script will tell."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

from varlab.launch.local import SIGNALS, global_rank
from varlab.launch.slurm_attempt import STOPPED, Attempt

__all__ = ["at_any_moment", "failed", "group", "stopped"]

FAILED = 1
# What the end of one rank looks like to another
_CONSEQUENCES = ("gloo", "Connection closed", "Connection reset", "Broken pipe", "NCCL", "TCPStore", "store timeout")


def at_any_moment(attempt: Attempt) -> None:
    """Leave at a signal as one stands: what is on the disk is whole. A training puts its own handler in place meanwhile.

    It is there until the process has ended: a signal that comes after the last word changes nothing.
    """
    process = os.getpid()

    def leave(number: int, frame: FrameType | None) -> None:
        if os.getpid() == process:  # the loaders' processes inherit this
            stopped(attempt, f"Stopped by {signal.Signals(number).name} outside of the training; it will go on.")

    for number in SIGNALS:
        signal.signal(number, leave)


def stopped(attempt: Attempt, why: str) -> NoReturn:
    """To be tried again. At once: leaving in order would wait for ranks that wait for this one."""
    if global_rank() == 0:
        attempt.stop(why)
    _out(STOPPED)


def failed(attempt: Attempt, error: Exception, text: str) -> NoReturn:
    """One of several ranks is at its end. The batch script finds the cause among the ranks' notes."""
    attempt.fail(global_rank(), text, consequence=_is_consequence(error))
    _out(FAILED)


def group() -> None:
    """Part from the other ranks in order: a group still open when Python exits can abort the process (gloo's threads)."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()


def _is_consequence(error: BaseException) -> bool:
    return isinstance(error, RuntimeError | OSError) and any(word in str(error) for word in _CONSEQUENCES)


def _out(code: int) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
