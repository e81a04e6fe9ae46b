"""An indexed shard set: exact batches on any number of ranks and workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader

from varlab.config import Config
from varlab.data.base import BaseDataModule
from varlab.data.faults import FaultCounter
from varlab.data.format.duplicates import Duplicates, find_duplicates
from varlab.data.format.index import Index, read_index
from varlab.data.image.augment import Augment
from varlab.data.image.crop import Centre, Crop
from varlab.data.limits import image_size, require_at_least, require_share, require_timeout
from varlab.data.read.loader import BatchDataset
from varlab.data.read.reader import ShardReader
from varlab.data.read.stream import EvalSplit, TrainStream, TrainViews
from varlab.data.storage.local_folder import Storage
from varlab.data.storage.remote_folder import storage_at
from varlab.errors import VarlabError
from varlab.types import Batch, DataInfo

__all__ = ["ShardDataModule"]


class ShardDataModule(BaseDataModule):
    """A shard set with an index: every sample has a number, and every batch is a function of (seed, position) alone.

    Args:
        path: folder of the shard set, or its URL. shards: where the shards lie now, if their index lies elsewhere and they were
            moved. batch, eval_batch, seed, workers: see ``BaseDataModule``.
        size: cut images to this square, or (H, W); None keeps their size. crop: chooses the part of each image for training;
            None takes all of it (or the centre, if ``size`` differs). augment: applied to training batches.
        views, views_seed: fixed views of each image, see ``TrainStream``; 0 draws a new view each time.
        open_shards: how many shards to mix at a time; None mixes all, see ``EpochOrder``.
        cache_bytes: keep splits up to this size decoded in memory. remote_cache, remote_bytes: folder and size of the cache
            for the shards of a URL. timeout: seconds after which a server that is silent or very slow is given up.
        max_bad: largest share of a split's samples that may be bad (missing, cut, corrupt …). Training replaces bad samples
            by others; evaluation leaves them out. most_pixels: larger images count as bad.
        view: "image", or "condition" to read the second image of each sample in its place: for a tokenizer of conditions.

    Raises:
        VarlabError: a setting is out of range; later, on reading: the shard set is damaged or not there.
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
        shards: str | None = None,
        timeout: float = 180.0,
    ):
        super().__init__(path=str(path), batch=batch, eval_batch=eval_batch, seed=seed, workers=workers)
        require_at_least(0, views=views, cache_bytes=cache_bytes)
        require_at_least(1, most_pixels=most_pixels)
        require_share(max_bad=max_bad)
        if view not in ("image", "condition"):
            raise VarlabError(f"data.view={view} is unknown: use image or condition.")
        self._size = None if size is None else image_size(size)
        self.crop = None if isinstance(crop, Centre) else crop  # the reader takes the centre by itself
        self.views, self._views_seed, self._view = views, views_seed, view
        self._augment, self._open_shards, self._cache_bytes = augment, open_shards, cache_bytes
        self._max_bad, self._most_pixels = max_bad, most_pixels
        self._remote_cache, self._remote_bytes, self._shards = remote_cache, remote_bytes, shards
        self._timeout = require_timeout(timeout)
        self._readers: dict[str, ShardReader] = {}
        self._watches: dict[str, FaultCounter] = {}

    @cached_property
    def index(self) -> Index:
        """The shard set's index."""
        shards = None if self._shards is None else self._storage(self._shards)
        return read_index(self._storage(self.path), shards=shards)

    def _storage(self, path: str) -> Storage:
        return storage_at(path, cache=self._remote_cache, cache_bytes=self._remote_bytes, timeout=self._timeout)

    @property
    def info(self) -> DataInfo:
        """Classes, image size, counts and hash from the index; and the view."""
        info = self.index.info
        return replace(info, view=self._view, image_size=self._size or info.image_size)

    @cached_property
    def duplicates(self) -> Duplicates:
        """Images that occur more than once, by the index."""
        return find_duplicates(self.index)

    @property
    def watches(self) -> Mapping[str, FaultCounter]:
        """The counter of bad samples of each split that was opened."""
        return self._watches

    def reader(self, split: str) -> ShardReader:
        """The samples of a split by number; opened once, when the sizes of its shards are checked.

        Raises:
            VarlabError: more bad samples than ``max_bad``.
        """
        self.index.require_view(self._view)
        if split not in self._readers:
            reader = ShardReader(
                index=self.index,
                split=split,
                cache_bytes=self._cache_bytes,
                most_pixels=self._most_pixels,
                size=self._size,
                max_bad=self._max_bad,
            )
            reader.watch.note(reader.survey())
            self._readers[split], self._watches[split] = reader, reader.watch
        return self._readers[split]

    def samples(self, split: str, index_N: Tensor | None = None) -> Batch:
        """Samples of a split by number, as they were packed, with their conditions if they have some.

        The next good sample replaces a bad one.
        """
        reader = self.reader(split)
        index_N = torch.arange(len(reader)) if index_N is None else index_N
        batch = reader.batch(index_N, view=self._view)
        while not bool(batch.valid_B.all()):
            self._watches[split].note(batch.faults)
            index_N = torch.where(batch.valid_B, index_N, (index_N + 1) % len(reader))
            batch = reader.batch(index_N, view=self._view)
        return batch

    def labels(self, split: str) -> Tensor:
        """All labels of a split, int64 ``label_N``."""
        return self.reader(split).label_N

    def train_samples(self, *, rank: int = 0, start: int = 0) -> TrainStream:
        """The training samples by position, the same on every rank."""
        return TrainStream(
            reader=self.reader("train"),
            seed=self._seed,
            augment=self._augment,
            view=self._view,
            crop=self.crop,
            views=self.views,
            views_seed=self._views_seed,
            open_shards=self._open_shards,
        )

    def eval_samples(self, split: str) -> EvalSplit:
        """A split in its own order."""
        return EvalSplit(reader=self.reader(split), view=self._view)

    def in_order(self, split: str, first: int, last: int, batch: int) -> DataLoader[Batch]:
        """Samples ``first`` to ``last`` (excluded) of a split in order, in batches; bad ones are not valid.

        Training images that have fixed views come once in each view, view after view.
        """
        views = self.views if split == "train" else 0
        samples: BatchDataset = TrainViews(self.train_samples(), views) if views else self.eval_samples(split)
        items = range(first * max(views, 1), last * max(views, 1))
        return self._loader(split, samples, BatchSampler(items, batch, drop_last=False))

    @property
    def looks(self) -> int:
        """In how many fixed ways a training image is seen; 0 where each time is a new one."""
        return self.views or (self._augment.looks if self.crop is None else 0)

    @property
    def loading_arguments(self) -> Config:
        """The arguments with which another data module gives the same samples in the same batches."""
        return {
            "batch": self.batch,
            "eval_batch": self.eval_batch,
            "seed": self._seed,
            "workers": self._workers,
            "open_shards": self._open_shards,
        }

    @property
    def reading_arguments(self) -> Config:
        """The arguments, in JSON types, with which another data module reads the same images."""
        return {
            "path": self.path,
            "size": None if self._size is None else list(self._size),
            "view": self._view,
            "cache_bytes": self._cache_bytes,
            "max_bad": self._max_bad,
            "most_pixels": self._most_pixels,
            "remote_cache": self._remote_cache,
            "remote_bytes": self._remote_bytes,
            **({} if self._shards is None else {"shards": self._shards}),
        }
