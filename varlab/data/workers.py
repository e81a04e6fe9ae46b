"""The worker processes of torch's DataLoader: how they start, and that they end with the reading."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from varlab.errors import VarlabError

__all__ = ["IGNORED", "hide_signals", "worker_results"]

T = TypeVar("T")
IGNORED = (signal.SIGTERM, signal.SIGUSR2, signal.SIGINT)
"""The signals that Slurm and Ctrl-C send to every process; workers ignore them, since they end with the trainer."""


@contextmanager
def hide_signals() -> Iterator[None]:
    """Keep the ignored signals from the processes that start inside; this process gets them afterwards."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, IGNORED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def worker_results(iterator: Iterator[T]) -> Generator[T]:
    """Yield what the iterator of a DataLoader yields; when this ends, by an error too, no worker process is left.

    An error would hold the iterator by its traceback, and its workers would go on: writing into a folder that is being
    cleared, or, where they ignore SIGTERM, keeping this process from its exit.

    Raises:
        VarlabError: a worker's one sentence; torch puts the worker's whole traceback into its text.
    """
    try:
        yield from iterator
    except VarlabError as e:
        raise VarlabError(str(e).rsplit("VarlabError: ", 1)[-1].strip()) from e
    finally:
        if isinstance(iterator, _MultiProcessingDataLoaderIter):
            iterator._shutdown_workers()
