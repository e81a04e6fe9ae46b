"""The results of torch's DataLoader, whose workers end with the reading."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from typing import TypeVar

from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from varlab.errors import VarlabError

__all__ = ["worker_results"]

T = TypeVar("T")


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
