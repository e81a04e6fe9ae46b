"""Torch's loader, for whole batches."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from varlab.data.faults import FaultCounter
from varlab.errors import VarlabError
from varlab.types import Batch

__all__ = ["Loader"]


class Loader(DataLoader[Batch]):
    """Torch's loader of whole batches. Bad samples are counted here, in the trainer's process, in the order of batches; an
    error of ours stays one sentence on its way out of a worker process."""

    def __init__(self, dataset: Dataset[Batch], batches: Sampler[Sequence[int]], *, workers: int, watch: FaultCounter):
        super().__init__(
            dataset,
            batch_sampler=batches,  # type: ignore[arg-type]  # a range serves as the list of a batch, and travels lighter
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else the loader seeds its workers from the global generator
            worker_init_fn=_worker,
        )
        self._watch = watch

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        try:
            for batch in super().__iter__():
                self._watch.note(batch.faults)
                yield batch
        except VarlabError as e:  # torch puts the worker's whole traceback into its text
            raise VarlabError(str(e).rsplit("VarlabError: ", 1)[-1].strip()) from e


def _worker(worker: int) -> None:
    """Workers share the cores among themselves, and leave signals to the process they work for: they end with it."""
    import cv2

    for number in (signal.SIGTERM, signal.SIGUSR2):  # Slurm sends them to all processes of a job
        signal.signal(number, signal.SIG_IGN)
    cv2.setNumThreads(0)


def _as_it_is(batch: Any) -> Any:
    """No collation: the dataset hands over whole batches."""
    return batch
