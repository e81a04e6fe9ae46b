"""A shard set as training and evaluation see it: loaders of global batches, exact on any ranks and workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from varlab.data.index import Index, read_index
from varlab.data.reader import ShardReader
from varlab.data.stream import Augment, EvalBatches, EvalSplit, TrainBatches, TrainStream, fetch
from varlab.errors import VarlabError
from varlab.types import Batch, DataInfo

__all__ = ["ShardDataModule"]


class ShardDataModule(LightningDataModule):
    """Nothing is read before it is asked for.

    Args:
        path: folder of the shard set. batch: global training batch, over all ranks. eval_batch: the same in evaluation.
        seed: of the order and the augmentation. workers: loader processes per rank, 0 to load in the trainer's own.
        augment: what training images go through. cache_bytes: splits up to this size are kept decoded in memory.
        view: what stands for the images, "image", or "condition" for the second image of each sample: a tokenizer of the
            conditions is trained so.

    The trainer's loader runs from position ``start`` to ``stop`` (images); whoever trains sets both before ``fit``,
    with ``use_distributed_sampler=False``.

    Raises:
        VarlabError: sizes below their minimum; and later, on reading, whatever is wrong with the shard set.
    """

    def __init__(
        self,
        *,
        path: str | Path,
        batch: int,
        eval_batch: int,
        seed: int,
        workers: int,
        augment: Augment,
        cache_bytes: int,
        view: str = "image",
    ):
        super().__init__()
        for name, value, least in (("batch", batch, 1), ("eval_batch", eval_batch, 1), ("workers", workers, 0)):
            if value < least:
                raise VarlabError(f"data.{name} is {value}, but must be at least {least}.")
        if view not in ("image", "condition"):
            raise VarlabError(f"data.view={view} is unknown: use image or condition.")
        self.path, self.batch, self.eval_batch, self._view = Path(path), batch, eval_batch, view
        self._seed, self._workers, self._augment, self._cache_bytes = seed, workers, augment, cache_bytes
        self._readers: dict[str, ShardReader] = {}
        self.start = 0
        self.stop: int | None = None

    @cached_property
    def index(self) -> Index:
        """The shard set's index."""
        return read_index(self.path)

    @property
    def info(self) -> DataInfo:
        """Classes, image size, counts and hash, as the index has them; and the view."""
        return replace(self.index.info, view=self._view)

    def reader(self, split: str) -> ShardReader:
        """The samples of a split by number; opened (and checked) once."""
        if self._view == "condition" and self.index.conditions is None:
            raise VarlabError(f"{self.path} holds no conditions to view: pack some (varlab pack condition=edges).")
        if split not in self._readers:
            self._readers[split] = ShardReader(index=self.index, split=split, cache_bytes=self._cache_bytes)
        return self._readers[split]

    def images(self, split: str, index_N: Tensor | None = None) -> Tensor:
        """Images of a split by number, uint8 ``img_N3HW``; all of them (mind the memory) without numbers."""
        return self.samples(split, index_N).img_u8_B3HW

    def samples(self, split: str, index_N: Tensor | None = None) -> Batch:
        """Samples of a split by number, as they were packed: images, labels, and conditions where there are some."""
        reader = self.reader(split)
        return fetch(reader, torch.arange(len(reader)) if index_N is None else index_N, self._view)

    def labels(self, split: str) -> Tensor:
        """All labels of a split, int64 ``label_N``."""
        return self.reader(split).label_N

    def train_loader(self, start: int, stop: int, rank: int, world: int) -> DataLoader[Batch]:
        """This rank's shares of the global batches from position ``start`` until at least ``stop``; sized.

        Raises:
            VarlabError: a batch that ``world`` does not divide, or a ``start`` inside a batch.
        """
        batches = TrainBatches(start=start, stop=stop, batch=self.batch, rank=rank, world=world)
        stream = TrainStream(reader=self.reader("train"), seed=self._seed, augment=self._augment, view=self._view)
        return self._loader(stream, batches)

    def eval_loader(self, split: str, rank: int, world: int, batch: int | None = None) -> DataLoader[Batch]:
        """This rank's shares of a split, in its order: every sample exactly once over all ranks, equal shapes on all of
        them, the few that fill up masked by ``valid_B``. ``batch``: global, ``eval_batch`` where not given.

        Raises:
            VarlabError: a batch that ``world`` does not divide.
        """
        reader = self.reader(split)
        size = self.eval_batch if batch is None else batch
        split_of = EvalSplit(reader=reader, view=self._view)
        return self._loader(split_of, EvalBatches(n=len(reader), batch=size, rank=rank, world=world))

    def _loader(self, dataset: Dataset[Batch], batches: Sampler[Sequence[int]]) -> DataLoader[Batch]:
        return _Loader(
            dataset,
            batch_sampler=batches,  # type: ignore[arg-type]  # a range serves as the list of a batch, and travels lighter
            num_workers=self._workers,
            collate_fn=_as_it_is,
            pin_memory=torch.cuda.is_available(),
            generator=torch.Generator(),  # else the loader seeds its workers from the global generator
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        """Lightning's hook: from ``start`` to ``stop`` on the trainer's ranks."""
        if self.stop is None:
            raise VarlabError("The data module has no stop: set the number of images to train before fit.")
        rank, world = self._ranks()
        return self.train_loader(self.start, self.stop, rank, world)

    def val_dataloader(self) -> DataLoader[Batch]:
        """Lightning's hook: the val split on the trainer's ranks."""
        return self.eval_loader("val", *self._ranks())

    def _ranks(self) -> tuple[int, int]:
        trainer = self.trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)


class _Loader(DataLoader[Batch]):
    """Torch's loader, but an error of ours stays one sentence on its way out of a worker process."""

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        try:
            yield from super().__iter__()
        except VarlabError as e:  # torch puts the worker's whole traceback into its text
            raise VarlabError(str(e).rsplit("VarlabError: ", 1)[-1].strip()) from e


def _as_it_is(batch: Any) -> Any:
    """No collation: the dataset hands over whole batches."""
    return batch
