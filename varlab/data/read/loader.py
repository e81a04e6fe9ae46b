"""Which positions each rank reads, and torch's DataLoader of whole batches."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from typing import TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from varlab.data.faults import FaultCounter
from varlab.data.limits import require_equal_shares
from varlab.data.workers import IGNORED, hide_signals, worker_results
from varlab.errors import VarlabError
from varlab.types import Batch

__all__ = ["BatchDataset", "EvalBatches", "Loader", "SplitDataset", "TrainBatches"]

T = TypeVar("T")


class BatchDataset(Dataset[Batch]):
    """Samples by position; DataLoader asks for the positions of a batch at once."""

    most_workers = sys.maxsize
    """The largest number of worker processes that may share the reading."""

    def at(self, position_B: Tensor) -> Batch:
        """The samples at those positions."""
        raise NotImplementedError

    def __getitem__(self, position: int) -> Batch:
        return self.at(torch.tensor([position]))

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        return self.at(torch.as_tensor(positions, dtype=torch.int64))


class SplitDataset(BatchDataset):
    """A split in its own order. Positions past its end, which fill up the last batch, are not valid."""

    def __len__(self) -> int:
        raise NotImplementedError


class TrainBatches(Sampler[Sequence[int]]):
    """A rank's share of each global batch, in whole batches from position ``start`` until at least ``stop``.

    Raises:
        VarlabError: the ranks cannot share a batch equally, or ``start`` lies inside a batch.
    """

    def __init__(self, *, start: int, stop: int, batch: int, rank: int, world: int):
        require_equal_shares(batch, world)
        if start % batch:
            raise VarlabError(
                f"Position {start} is inside a batch of {batch}: resume with the batch size of the start."
            )
        self._starts = range(start, stop, batch)
        self._share, self._rank = batch // world, rank

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Sequence[int]]:
        for start in self._starts:
            first = start + self._rank * self._share
            yield range(first, first + self._share)


class EvalBatches(Sampler[Sequence[int]]):
    """A rank's share of global batches over ``n`` samples: each sample once over all ranks, equal batches on every rank.

    The last batch holds the rest, rounded up to the number of ranks: at most ``world - 1`` positions lie past the end.

    Raises:
        VarlabError: the ranks cannot share a batch equally.
    """

    def __init__(self, *, n: int, batch: int, rank: int, world: int):
        require_equal_shares(batch, world)
        self._total = -(-n // world) * world
        self._batch, self._rank, self._world = batch, rank, world

    def __len__(self) -> int:
        return -(-self._total // self._batch)

    def __iter__(self) -> Iterator[Sequence[int]]:
        for first in range(0, self._total, self._batch):
            share = min(self._batch, self._total - first) // self._world
            yield range(first + self._rank * share, first + (self._rank + 1) * share)


class Loader(DataLoader[Batch]):
    """Torch's DataLoader of whole batches; counts bad samples in the trainer's process, in the order of batches.

    A VarlabError in a worker process arrives as the same one sentence.
    """

    def __init__(
        self, dataset: BatchDataset, batches: Iterable[Sequence[int]], *, workers: int, watch: FaultCounter | None
    ):
        super().__init__(
            dataset,
            batch_sampler=batches,  # type: ignore[arg-type]  # a range can replace a list of positions, and is smaller
            num_workers=min(workers, dataset.most_workers),
            collate_fn=_shared,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # otherwise worker seeds come from the global generator
            worker_init_fn=_start_worker,
        )
        self._watch = watch

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        with hide_signals():  # a signal may come before a worker ignores it
            iterator = super().__iter__()
        with closing(worker_results(iterator)) as batches:
            for batch in batches:
                if self._watch is not None:
                    self._watch.note(batch.faults)
                yield batch


def _start_worker(worker: int) -> None:
    """Use one thread, ignore the signals that are sent to every process, and end with the trainer."""
    import cv2

    for number in IGNORED:
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)
    threading.Thread(target=_end_with_trainer, daemon=True).start()


def _end_with_trainer() -> None:
    """End this worker when the trainer has ended. Torch looks only at the process that forked this one."""
    trainer = multiprocessing.parent_process()
    assert trainer is not None
    trainer.join()
    os._exit(1)


def _shared(batch: T) -> T:
    """The whole batch that the dataset returned, in shared memory if a worker process made it.

    Torch would share it later, in a thread whose errors reach nobody: with a full /dev/shm the trainer would wait for ever.
    """
    if torch.utils.data.get_worker_info() is not None:
        for value in vars(batch).values():
            if isinstance(value, Tensor):
                value.share_memory_()
    return batch
