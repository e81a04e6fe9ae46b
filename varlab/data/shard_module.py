"""A shard set as training and evaluation see it: loaders of global batches, exact on any ranks and workers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from varlab.config import Config
from varlab.data.faults import FaultCounter
from varlab.data.format.index import Index, read_index
from varlab.data.format.storage import storage_at
from varlab.data.image.augment import Augment
from varlab.data.image.crop import Centre, Crop
from varlab.data.read.batches import Chunks, EvalBatches, TrainBatches
from varlab.data.read.loader import Loader
from varlab.data.read.reader import ShardReader
from varlab.data.read.stream import EvalSplit, TrainStream, Ways, fetch
from varlab.errors import VarlabError
from varlab.types import Batch, DataInfo

__all__ = ["ShardDataModule"]


class ShardDataModule(LightningDataModule):
    """Nothing is read before it is asked for.

    Args:
        path: folder of the shard set, or its URL. batch: global training batch, over all ranks. eval_batch: the same in
            evaluation. seed: of the order and the augmentation. workers: loader processes per rank, 0 to load in the
            trainer's own.
        size: images are cut to this square, or (H, W); None takes them as they are. crop: what training cuts out of each
            image; None all of it (or the middle, where ``size`` is another). augment: what training batches go through.
        views: images are seen in so many ways each, drawn by views_seed, see ``TrainStream``; 0 draws a new one each time.
        open_shards: how many shards an epoch mixes at a time; None mixes all, see ``Shuffle``.
        cache_bytes: splits up to this size are kept decoded in memory. remote_cache, remote_bytes: folder and size of the
            cache that shards of a URL come into.
        max_bad: share of a split's samples that may be bad (missing, cut, corrupt …); others stand in for them in training,
            and they are left out in evaluation. most_pixels: larger images count as bad.
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
        max_bad: float = 0.0,
        most_pixels: int = 1 << 27,
        remote_cache: str = "~/.cache/varlab/shards",
        remote_bytes: int = 1 << 36,
        size: int | Sequence[int] | None = None,
        crop: Crop | None = None,
        views: int = 0,
        views_seed: int = 0,
        open_shards: int | None = None,
    ):
        super().__init__()
        for name, value, least in (("batch", batch, 1), ("eval_batch", eval_batch, 1), ("workers", workers, 0)):
            if value < least:
                raise VarlabError(f"data.{name} is {value}, but must be at least {least}.")
        if view not in ("image", "condition"):
            raise VarlabError(f"data.view={view} is unknown: use image or condition.")
        if not 0 <= max_bad <= 1:
            raise VarlabError(f"data.max_bad is {max_bad}, but it is a share: give 0 to 1.")
        self.path, self.batch, self.eval_batch, self._view = str(path), batch, eval_batch, view
        self._seed, self._workers, self._augment, self._cache_bytes = seed, workers, augment, cache_bytes
        self._size = _pair(size)
        if views < 0:
            raise VarlabError(
                f"data.views is {views}, but an image is seen in at least one way, or in ever new ones (0)."
            )
        self.crop = None if isinstance(crop, Centre) else crop  # what a reader does by itself
        self._open_shards = open_shards
        self.views, self.views_seed = views, views_seed
        self._max_bad, self._most_pixels = max_bad, most_pixels
        self._remote_cache, self._remote_bytes = remote_cache, remote_bytes
        self._readers: dict[str, ShardReader] = {}
        self.watches: dict[str, FaultCounter] = {}
        self.start = 0
        self.stop: int | None = None

    @cached_property
    def index(self) -> Index:
        """The shard set's index."""
        return read_index(storage_at(self.path, cache=self._remote_cache, cache_bytes=self._remote_bytes))

    @property
    def info(self) -> DataInfo:
        """Classes, image size, counts and hash, as the index has them; and the view."""
        info = self.index.info
        return replace(info, view=self._view, image_size=self._size or info.image_size)

    def reader(self, split: str) -> ShardReader:
        """The samples of a split by number; opened (and what its shards' sizes tell, told) once.

        Raises:
            VarlabError: more bad samples than ``max_bad``.
        """
        if self._view == "condition" and self.index.conditions is None:
            raise VarlabError(f"{self.path} holds no conditions to view: pack some (varlab pack condition=edges).")
        if split not in self._readers:
            reader = ShardReader(
                index=self.index,
                split=split,
                cache_bytes=self._cache_bytes,
                most_pixels=self._most_pixels,
                size=self._size,
            )
            watch = FaultCounter(where=self.path, split=split, n=len(reader), most=self._max_bad)
            watch.note(reader.survey())
            self._readers[split], self.watches[split] = reader, watch
        return self._readers[split]

    def images(self, split: str, index_N: Tensor | None = None) -> Tensor:
        """Images of a split by number, uint8 ``img_N3HW``; all of them (mind the memory) without numbers."""
        return self.samples(split, index_N).img_u8_B3HW

    def samples(self, split: str, index_N: Tensor | None = None) -> Batch:
        """Samples of a split by number, as they were packed: images, labels, and conditions where there are some. The next
        whole one stands in for one that is bad."""
        reader = self.reader(split)
        index_N = torch.arange(len(reader)) if index_N is None else index_N
        batch = fetch(reader, index_N, self._view)
        while not bool(batch.valid_B.all()):
            self.watches[split].note(batch.faults)
            index_N = torch.where(batch.valid_B, index_N, (index_N + 1) % len(reader))
            batch = fetch(reader, index_N, self._view)
        return batch

    def labels(self, split: str) -> Tensor:
        """All labels of a split, int64 ``label_N``."""
        return self.reader(split).label_N

    def train_loader(self, start: int, stop: int, rank: int, world: int) -> DataLoader[Batch]:
        """This rank's shares of the global batches from position ``start`` until at least ``stop``; sized.

        Raises:
            VarlabError: a batch that ``world`` does not divide, or a ``start`` inside a batch.
        """
        batches = TrainBatches(start=start, stop=stop, batch=self.batch, rank=rank, world=world)
        return self._loader("train", self.train_stream(), batches)

    def train_stream(self) -> TrainStream:
        """The samples of training by position."""
        return TrainStream(
            reader=self.reader("train"),
            seed=self._seed,
            augment=self._augment,
            view=self._view,
            crop=self.crop,
            views=self.views,
            views_seed=self.views_seed,
            open_shards=self._open_shards,
        )

    def eval_loader(self, split: str, rank: int, world: int, batch: int | None = None) -> DataLoader[Batch]:
        """This rank's shares of a split, in its order: every sample exactly once over all ranks, equal shapes on all of
        them, the few that fill up masked by ``valid_B``. ``batch``: global, ``eval_batch`` where not given.

        Raises:
            VarlabError: a batch that ``world`` does not divide.
        """
        reader = self.reader(split)
        size = self.eval_batch if batch is None else batch
        split_of = EvalSplit(reader=reader, view=self._view)
        return self._loader(split, split_of, EvalBatches(n=len(reader), batch=size, rank=rank, world=world))

    def in_order(self, split: str, first: int, last: int, batch: int) -> DataLoader[Batch]:
        """Samples first to last (not included) of a split in their order, in batches; training images, where they are seen
        in counted ways, in one after another of them. Bad samples are not valid."""
        views = self.views if split == "train" else 0
        reader = self.reader(split)
        samples: Dataset[Batch] = (
            Ways(self.train_stream(), views) if views else EvalSplit(reader=reader, view=self._view)
        )
        chunks = Chunks(first * max(views, 1), last * max(views, 1), batch)
        return self._loader(split, samples, chunks)

    @property
    def opened_by(self) -> Config:
        """The arguments, in JSON types, that open the same images again."""
        return {
            "path": self.path,
            "size": None if self._size is None else list(self._size),
            "view": self._view,
            "cache_bytes": self._cache_bytes,
            "max_bad": self._max_bad,
            "most_pixels": self._most_pixels,
            "remote_cache": self._remote_cache,
            "remote_bytes": self._remote_bytes,
        }

    def _loader(self, split: str, dataset: Dataset[Batch], batches: Sampler[Sequence[int]]) -> DataLoader[Batch]:
        return Loader(dataset, batches, workers=self._workers, watch=self.watches[split])

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


def _pair(size: int | Sequence[int] | None) -> tuple[int, int] | None:
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise VarlabError(f"data.size is {size}, but an image has at least one pixel.")
    return height, width
