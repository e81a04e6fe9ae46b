"""Shards without an index, behind ``pipe:`` commands and HTTP(S), as training and evaluation see them: webdataset's pipeline.

The other reader (``varlab.data.shard_module``) is exact to the bit; this one is not, and says so.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from functools import cached_property, partial

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from varlab.data.faults import FaultCounter
from varlab.data.image.augment import Augment
from varlab.data.image.crop import Crop
from varlab.data.read.batches import EvalBatches, TrainBatches
from varlab.data.read.loader import Loader
from varlab.data.unindexed.datasets import Endless, Held, InOrder, hold
from varlab.data.unindexed.samples import Flow, Opened
from varlab.data.unindexed.shard_stream import shard_urls
from varlab.errors import VarlabError
from varlab.types import Batch, DataInfo

__all__ = ["StreamDataModule"]

log = logging.getLogger(__name__)

_SPLITS = ("train", "val")


class StreamDataModule(LightningDataModule):
    """Nothing is read before it is asked for.

    Args:
        train, val: shards of each split, as paths, http(s)://… or ``pipe:`` commands, one or a list, braces expanded.
        classes: how many there are, or their names in label order. label: where labels are told, see ``read_label``.
        size: images are brought to this square, or (H, W). crop: what training cuts out of each image, None for the middle.
        train_images: samples of the training shards, as far as is known: an epoch; what faults are a share of.
        val_images: so many of the val shards' samples are held out, the first in their order, decoded in memory (3·H·W
            bytes each, on every rank).
        batch: global training batch, over all ranks. eval_batch: the same in evaluation. seed: of what comes and of the
            augmentation. workers: loader processes per rank, 0 to load in the trainer's own.
        shuffle: samples that each of them holds encoded to draw from (webdataset's buffer).
        augment: what training batches go through.
        max_bad: share of a split's samples that may be bad; the next one is taken in place of each. Of a shard that is
            missing or cut, as many count as one holds on average. most_pixels: larger images count as bad.

    A silent server is given up after three minutes, a silent ``pipe:`` command never: give it a timeout of its own.

    Training is deterministic for the same start, ranks and workers. From another start other samples come, so that a run
    that is resumed is as good as one that was not, but not the same.

    Raises:
        VarlabError: settings that cannot be; and later, on reading, whatever is wrong with the shards.
    """

    def __init__(
        self,
        *,
        train: str | Sequence[str],
        val: str | Sequence[str],
        classes: int | Sequence[str],
        size: int | Sequence[int],
        train_images: int,
        val_images: int,
        batch: int,
        eval_batch: int,
        seed: int,
        workers: int,
        shuffle: int,
        augment: Augment,
        label: str = "auto",
        crop: Crop | None = None,
        max_bad: float = 0.0,
        most_pixels: int = 1 << 27,
    ):
        super().__init__()
        least = (("batch", batch, 1), ("eval_batch", eval_batch, 1), ("workers", workers, 0), ("shuffle", shuffle, 0))
        for name, value, smallest in (*least, ("train_images", train_images, 1), ("val_images", val_images, 1)):
            if value < smallest:
                raise VarlabError(f"data.{name} is {value}, but must be at least {smallest}.")
        if not 0 <= max_bad <= 1:
            raise VarlabError(f"data.max_bad is {max_bad}, but it is a share: give 0 to 1.")
        self._urls = {
            split: shard_urls(spec, f"data.{split}") for split, spec in zip(_SPLITS, (train, val), strict=True)
        }
        self._images = dict(zip(_SPLITS, (train_images, val_images), strict=True))
        self._opened = Opened(classes=classes, label=label, most_pixels=most_pixels)
        self._label, self._size = label, _pair(size)
        self.path = _shown(self._urls["train"]) if not isinstance(train, str) else train
        self.batch, self.eval_batch, self._workers, self._seed = batch, eval_batch, workers, seed
        self._shuffle, self._augment, self._crop = shuffle, augment, crop
        self.watches = {split: self._watch(split, max_bad) for split in _SPLITS}
        self.start = 0
        self.stop: int | None = None
        self._said = False

    @property
    def info(self) -> DataInfo:
        """As it was set; the hash is of the addresses and of what decides samples and labels, not of bytes."""
        decides = {
            "urls": {split: list(urls) for split, urls in self._urls.items()},
            "images": self._images,
            "classes": list(self._opened.names),
            "label": self._label,
            "size": list(self._size),
        }
        return DataInfo(
            path=self.path,
            classes=self._opened.names,
            image_size=self._size,
            counts=dict(self._images),
            hash=hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest(),
            source=f"stream(train={_shown(self._urls['train'])}, val={_shown(self._urls['val'])}, label={self._label})",
        )

    @cached_property
    def _held(self) -> Held:
        """The val split; read once."""
        log.info("reading %d val images", self._images["val"])
        return hold(self._flow("val")(), self._opened, self._size, self._images["val"], self.watches["val"].note)

    def images(self, split: str, index_N: Tensor | None = None) -> Tensor:
        """Images of val by number, uint8 ``img_N3HW``; all of them without numbers."""
        return self.samples(split, index_N).img_u8_B3HW

    def samples(self, split: str, index_N: Tensor | None = None) -> Batch:
        """Samples of val by number. VarlabError for those of training, which have none."""
        held = self._numbered(split)
        return held.at(torch.arange(len(held)) if index_N is None else index_N)

    def labels(self, split: str) -> Tensor:
        """All labels of val, int64 ``label_N``. VarlabError for those of training."""
        return self._numbered(split).label_N

    def train_loader(self, start: int, stop: int, rank: int, world: int) -> DataLoader[Batch]:
        """This rank's shares of the global batches from position ``start`` until at least ``stop``; sized.

        Raises:
            VarlabError: a batch that ``world`` does not divide, or a ``start`` inside a batch.
        """
        if rank == 0 and not self._said:
            self._said = True
            log.warning(
                "%s is streamed: a run resumes statistically, not exactly; use varlab index for exact streaming.",
                self.path,
            )
        endless = Endless(
            flow=self._flow("train"),
            opened=self._opened,
            size=self._size,
            crop=self._crop,
            augment=self._augment,
            seed=self._seed,
            buffer=self._shuffle,
            rank=rank,
            start=start,
        )
        batches = TrainBatches(start=start, stop=stop, batch=self.batch, rank=rank, world=world)
        return Loader(endless, batches, workers=self._workers, watch=self.watches["train"])

    def eval_loader(self, split: str, rank: int, world: int, batch: int | None = None) -> DataLoader[Batch]:
        """This rank's shares of a split, in its order: every sample exactly once over all ranks, equal shapes on all of
        them, the few that fill up masked by ``valid_B``. ``batch``: global, ``eval_batch`` where not given. The training
        split is read by one process from its first shard on, each rank decoding what is its own; its bad samples are
        masked too.

        Raises:
            VarlabError: a batch that ``world`` does not divide.
        """
        n, size = self._images[split], self.eval_batch if batch is None else batch
        batches = EvalBatches(n=n, batch=size, rank=rank, world=world)
        if split == "val":
            return Loader(self._held, batches, workers=0, watch=self.watches[split])
        samples: Dataset[Batch] = InOrder(flow=self._flow(split), opened=self._opened, size=self._size, n=n)
        return Loader(samples, batches, workers=min(self._workers, 1), watch=self.watches[split])

    def train_dataloader(self) -> DataLoader[Batch]:
        """Lightning's hook: from ``start`` to ``stop`` on the trainer's ranks."""
        if self.stop is None:
            raise VarlabError("The data module has no stop: set the number of images to train before fit.")
        return self.train_loader(self.start, self.stop, *self._ranks())

    def val_dataloader(self) -> DataLoader[Batch]:
        """Lightning's hook: the val split on the trainer's ranks."""
        return self.eval_loader("val", *self._ranks())

    def _ranks(self) -> tuple[int, int]:
        trainer = self.trainer
        return (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)

    def _flow(self, split: str) -> Callable[[], Flow]:
        return partial(Flow, self._urls[split], name=f"data.{split}", n=self._images[split])

    def _watch(self, split: str, most: float) -> FaultCounter:
        where, n = _shown(self._urls[split]), self._images[split]
        return FaultCounter(
            where=where, split=split, n=n, most=most, remedy="mend them, or allow more with data.max_bad"
        )

    def _numbered(self, split: str) -> Held:
        if split != "val":
            raise VarlabError(
                f"The {split} samples of {self.path} are streamed and have no numbers: use val, or data=shards."
            )
        return self._held


def _shown(urls: Sequence[str]) -> str:
    return urls[0] if len(urls) == 1 else f"{urls[0]} … {urls[-1]} ({len(urls)} shards)"


def _pair(size: int | Sequence[int]) -> tuple[int, int]:
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise VarlabError(f"data.size is {size}, but an image has at least one pixel.")
    return height, width
