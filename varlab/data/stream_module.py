"""Shards without an index, behind ``pipe:`` commands and HTTP(S): webdataset's pipeline. Statistical, not exact.

``varlab.data.shard_module`` reads indexed shards exactly, to the bit.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from functools import cached_property, partial

import torch
from torch import Tensor

from varlab.data.base import BaseDataModule
from varlab.data.faults import FaultCounter
from varlab.data.image.augment import Augment
from varlab.data.image.crop import Crop
from varlab.data.image.depth import ASSUMED, describe_depths, read_depths
from varlab.data.image.picture import PixelRules
from varlab.data.limits import image_size, require_at_least, require_share, require_timeout
from varlab.data.read.loader import BatchDataset, SplitDataset
from varlab.data.sequential.datasets import HeldSplit, OpenStream, StreamedSplit, StreamedTraining, hold_split
from varlab.data.sequential.sample_stream import SampleDecoder, SampleStream
from varlab.data.sequential.shard_stream import shard_urls
from varlab.errors import VarlabError
from varlab.types import Batch, DataInfo

__all__ = ["StreamDataModule"]

log = logging.getLogger(__name__)


class StreamDataModule(BaseDataModule):
    """Shards that are read from first to last, without an index.

    Args:
        train, val: shards of each split, as paths, http(s)://… or ``pipe:`` commands, one or a list, braces expanded.
        classes: how many there are, or their names in label order. label: where to find labels, see ``read_label``.
        size: resize images to this square, or (H, W). crop: chooses the part of each image for training; None takes the
            centre.
        train_images: samples in the training shards, as far as is known: the length of an epoch, and what ``max_bad`` is a
            share of.
        val_images: how many samples of the val shards to hold out, the first ones in order; they are kept decoded in memory
            (3·H·W bytes each, on every rank).
        batch, eval_batch, seed, workers: see ``BaseDataModule``.
        shuffle: encoded samples that each worker holds to draw from (webdataset's buffer).
        augment: applied to training batches.
        max_bad: largest share of a split's samples that may be bad; the next sample replaces a bad one. A shard that is
            missing or cut counts as many as a shard holds on average. most_pixels: larger images count as bad.
        depth: the bits of values that are more than bytes, see ``read_depths``; auto: 16, and floats in [0, 1].
        timeout: seconds after which a server that is silent or very slow is given up, over three attempts. A silent ``pipe:``
            command is never given up: give it its own timeout.

    Training is deterministic for the same start, ranks and workers. A resumed run reads other samples than an uninterrupted
    one, with the same statistics.

    Raises:
        VarlabError: a setting is out of range; later, on reading: the shards are damaged or not there.
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
        depth: int | str = "auto",
        timeout: float = 180.0,
    ):
        self._urls = {"train": shard_urls(train, "data.train"), "val": shard_urls(val, "data.val")}
        path = train if isinstance(train, str) else _shown(self._urls["train"])
        super().__init__(path=path, batch=batch, eval_batch=eval_batch, seed=seed, workers=workers)
        require_at_least(0, shuffle=shuffle)
        require_at_least(1, train_images=train_images, val_images=val_images)
        require_share(max_bad=max_bad)
        self._counts = {"train": train_images, "val": val_images}
        rules = PixelRules(most_pixels=most_pixels, depths=read_depths(depth, auto=ASSUMED), keys="data.")
        self._decoder = SampleDecoder(classes=classes, label=label, rules=rules)
        self._size, self._shuffle, self._augment, self._crop = image_size(size), shuffle, augment, crop
        self._timeout, self._max_bad = require_timeout(timeout), max_bad
        self._watches = {split: self._watch(split) for split in self._urls}
        self._warned = False

    @property
    def info(self) -> DataInfo:
        """As configured. The hash covers the addresses and what decides samples and labels, but no bytes."""
        depths = self._decoder.rules.depths
        decides = {
            "urls": {split: list(urls) for split, urls in self._urls.items()},
            "images": self._counts,
            "classes": list(self._decoder.classes),
            "label": self._decoder.label,
            "size": list(self._size),
            **({} if depths == ASSUMED else {"depth": dict(depths)}),
        }
        train, val = _shown(self._urls["train"]), _shown(self._urls["val"])
        return DataInfo(
            path=self.path,
            classes=self._decoder.classes,
            image_size=self._size,
            counts=dict(self._counts),
            hash=hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest(),
            source=f"stream(train={train}, val={val}, label={self._decoder.label})",
        )

    @property
    def watches(self) -> Mapping[str, FaultCounter]:
        """The counter of bad samples of each split."""
        return self._watches

    @cached_property
    def _val(self) -> HeldSplit:
        depths = describe_depths(self._decoder.rules.depths)
        log.info("reading %d val images; values of more than 8 bits are %s (data.depth)", self._counts["val"], depths)
        stream, note = self._stream("val")(), self._watches["val"].note
        return hold_split(stream, size=self._size, n=self._counts["val"], note=note)

    def samples(self, split: str, index_N: Tensor | None = None) -> Batch:
        """Samples of val by number. Raises VarlabError for training samples, which have no numbers."""
        held = self._numbered(split)
        return held.at(torch.arange(len(held)) if index_N is None else index_N)

    def labels(self, split: str) -> Tensor:
        """All labels of val, int64 ``label_N``. Raises VarlabError for those of training."""
        return self._numbered(split).label_N

    def train_samples(self, *, rank: int = 0, start: int = 0) -> BatchDataset:
        """Different samples on each rank. Warns once that a resumed run is not exact."""
        if rank == 0 and not self._warned:
            self._warned = True
            log.warning(
                "%s is streamed: a run resumes statistically, not exactly; use varlab index for exact streaming.",
                self.path,
            )
        return StreamedTraining(
            open_stream=self._stream("train"),
            size=self._size,
            crop=self._crop,
            augment=self._augment,
            seed=self._seed,
            buffer=self._shuffle,
            rank=rank,
            start=start,
        )

    def eval_samples(self, split: str) -> SplitDataset:
        """val from memory; train from its first shard on, decoding only this rank's samples."""
        if split == "val":
            return self._val
        return StreamedSplit(open_stream=self._stream(split), size=self._size, n=self._counts[split])

    def _stream(self, split: str) -> OpenStream:
        name, n = f"data.{split}", self._counts[split]
        expected, urls = self._watch(split), self._urls[split]
        return partial(
            SampleStream, urls, name=name, n=n, decoder=self._decoder, timeout=self._timeout, expected=expected
        )

    def _watch(self, split: str) -> FaultCounter:
        where, n, remedy = (
            _shown(self._urls[split]),
            self._counts[split],
            "repair them, or allow more with data.max_bad",
        )
        return FaultCounter(where=where, split=split, n=n, most=self._max_bad, remedy=remedy)

    def _numbered(self, split: str) -> HeldSplit:
        if split != "val":
            raise VarlabError(
                f"The {split} samples of {self.path} are streamed and have no numbers: use val, or data=shards."
            )
        return self._val


def _shown(urls: Sequence[str]) -> str:
    return urls[0] if len(urls) == 1 else f"{urls[0]} … {urls[-1]} ({len(urls)} shards)"
