"""How a rank ends: with the exit code and the note from which its batch script decides what comes next."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType
from typing import NoReturn

from varlab.launch.environment import SIGNALS, global_rank
from varlab.launch.slurm_attempt import STOPPED, Attempt

__all__ = ["FAILED", "STOPPED", "exit_at_signals", "exit_failed", "exit_now", "exit_stopped", "leave_process_group"]

FAILED = 1
# Texts of the errors that a rank meets because another rank is gone.
_LOST_RANK = ("gloo", "Connection closed", "Connection reset", "Broken pipe", "NCCL", "TCPStore", "store timeout")


def exit_at_signals(attempt: Attempt) -> None:
    """Exit immediately at a stop signal, until this process ends: files on disk are complete at any moment.

    A training replaces these handlers while it runs.
    """
    process = os.getpid()

    def leave(number: int, frame: FrameType | None) -> None:
        # The data loaders' processes inherit this handler.
        if os.getpid() == process:
            exit_stopped(attempt, f"Stopped by {signal.Signals(number).name} outside of the training; it will resume.")

    for number in SIGNALS:
        signal.signal(number, leave)


def exit_stopped(attempt: Attempt, why: str) -> NoReturn:
    """Exit immediately with the retry code. An orderly exit would deadlock on ranks that wait for this one."""
    if global_rank() == 0:
        attempt.note_stop(why)
    exit_now(STOPPED)


def exit_failed(attempt: Attempt, error: Exception, message: str) -> NoReturn:
    """Exit immediately with a note of the error; the batch script looks for the cause among the ranks' notes."""
    lost = isinstance(error, RuntimeError | OSError) and any(text in str(error) for text in _LOST_RANK)
    attempt.note_error(global_rank(), message, consequence=lost)
    exit_now(FAILED)


def exit_now(code: int) -> NoReturn:
    """End this process without waiting for threads or for other ranks."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def leave_process_group() -> None:
    """Close torch's process group together with the other ranks: gloo's threads may abort a Python that exits with it open."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.barrier()
        torch.distributed.destroy_process_group()
