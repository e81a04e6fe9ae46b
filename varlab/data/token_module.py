"""Token shards: training without pixels and without a tokenizer, in the same order as from the images."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from varlab.data.base import BaseDataModule
from varlab.data.faults import FaultCounter
from varlab.data.format.duplicates import Duplicates
from varlab.data.image.augment import Augment
from varlab.data.read.epoch_order import EpochOrder
from varlab.data.read.loader import BatchDataset, SplitDataset
from varlab.data.shard_module import ShardDataModule
from varlab.data.token_reader import TokenReader
from varlab.data.tokens import TokenSet, read_tokens
from varlab.errors import VarlabError
from varlab.rng import Rng
from varlab.types import Batch, DataInfo

__all__ = ["TokenDataModule", "shards_or_tokens"]


_READING = frozenset({"path", "size", "view", "cache_bytes", "max_bad", "most_pixels", "shards"})


class TokenDataModule(BaseDataModule):
    """Training batches of tokens; evaluation batches of images with their tokens.

    Args:
        path: the output of ``varlab encode``. images: the shard set that was encoded; None opens the one that the tokens
            name. batch, eval_batch, seed, workers, open_shards: as in ``ShardDataModule``. With the same seed, the same
            images come in the same order and in the same views.

    Raises:
        VarlabError: there are no tokens, or they were made from other images than ``images``.
    """

    def __init__(
        self,
        *,
        path: str,
        batch: int,
        eval_batch: int,
        seed: int,
        workers: int,
        images: ShardDataModule | None = None,
        open_shards: int | None = None,
    ):
        super().__init__(path=path, batch=batch, eval_batch=eval_batch, seed=seed, workers=workers)
        self._images, self._open_shards = images, open_shards
        self._readers: dict[str, TokenReader] = {}

    @cached_property
    def tokens(self) -> TokenSet:
        """The description of the tokens."""
        return read_tokens(self.path)

    @cached_property
    def shards(self) -> ShardDataModule:
        """The images that were encoded."""
        shards = self._images or ShardDataModule(
            **self._reading(),
            augment=Augment(flip=False, crop=1.0, noise=0.0),
            batch=self.batch,
            eval_batch=self.eval_batch,
            seed=self._seed,
            workers=self._workers,
        )
        self.tokens.require_same_images(shards.path, shards.info.hash)
        return shards

    def _reading(self) -> dict[str, Any]:
        """How the tokens say that the images are read; a record does not decide where a cache is written."""
        given = {
            name: value for name, value in self.tokens.images.items() if name not in ("remote_cache", "remote_bytes")
        }
        if not isinstance(given.get("path"), str) or not set(given) <= _READING:
            raise VarlabError(
                f"{self.path} names its images in an unknown way: set data.images, or run `varlab encode` again."
            )
        return given

    @property
    def info(self) -> DataInfo:
        """The info of the images, with the hash of the tokens."""
        tokens = self.tokens
        images = {split: sum(shard.count for shard in shards) for split, shards in tokens.splits.items()}
        encoded = sum(n * (tokens.views if split == "train" else 1) for split, n in images.items())
        return replace(self.shards.info, tokens=tokens.hash, encoded=encoded)

    @property
    def duplicates(self) -> Duplicates:
        """Those of the images."""
        return self.shards.duplicates

    @property
    def watches(self) -> Mapping[str, FaultCounter]:
        """The counters of the images."""
        return self.shards.watches

    def reader(self, split: str) -> TokenReader:
        """The tokens of a split by number."""
        if split not in self._readers:
            reader = TokenReader(self.tokens, split)
            if int(reader.label_N.max()) >= (classes := len(self.shards.info.classes)):
                raise VarlabError(
                    f"{self.path} has {split} labels that are none of {classes} classes: run `varlab encode` again."
                )
            self._readers[split] = reader
        return self._readers[split]

    def samples(self, split: str, index_N: Tensor | None = None) -> Batch:
        """Samples of a split by number, as images."""
        return self.shards.samples(split, index_N)

    def labels(self, split: str) -> Tensor:
        """All labels of a split, int64 ``label_N``."""
        return self.reader(split).label_N

    def train_samples(self, *, rank: int = 0, start: int = 0) -> BatchDataset:
        """Tokens alone, the same on every rank."""
        reader = self.reader("train")
        order = EpochOrder(
            seed=self._seed, shard_N=reader.shard_N, views=self.tokens.views, open_shards=self._open_shards
        )
        mirrored = self.tokens.origin.get("mirrored")
        return _TokenStream(reader, order, partial(Augment.flips, rng=Rng(self._seed)) if mirrored else order.view)

    def eval_samples(self, split: str) -> SplitDataset:
        """The images, with their tokens unless these were made from augmented views, or of other splits alone."""
        images = self.shards.eval_samples(split)
        augmented = split == "train" and self.tokens.origin.get("views")
        return images if augmented or split not in self.tokens.splits else _WithTokens(images, self.reader(split))


def shards_or_tokens(*, tokens: str | None, **shards: Any) -> BaseDataModule:
    """The data module of a shard set. With ``tokens``, a folder of ``varlab encode``, training reads those tokens.

    shards: arguments of ``ShardDataModule``. Those that change how images look have no effect on encoded tokens.
    """
    images = ShardDataModule(**shards)
    if tokens is None:
        return images
    own = {name: shards[name] for name in ("batch", "eval_batch", "seed", "workers")}
    return TokenDataModule(path=tokens, images=images, open_shards=shards.get("open_shards"), **own)


class _TokenStream(BatchDataset):
    """Training tokens by position; images that could not be encoded are replaced as ``TrainStream`` replaces bad ones."""

    def __init__(self, reader: TokenReader, order: EpochOrder, view: Callable[[Tensor], Tensor]):
        self._reader, self._order, self._view = reader, order, view

    def at(self, position_B: Tensor) -> Batch:
        """Without images."""
        index_B, view_B = self._order.locate(position_B), self._view(position_B)
        tokens_BP, valid_B = self._reader.read(index_B, view_B)
        for row_b, index_b in self._order.substitutes(position_B, valid_B):
            index_B[row_b] = index_b
            tokens_BP[row_b], valid_B[row_b] = self._reader.read(index_b, view_B[row_b])
        return Batch(
            img_u8_B3HW=torch.empty((len(index_B), 3, 0, 0), dtype=torch.uint8),
            label_B=self._reader.label_N[index_B],
            position_B=position_B,
            valid_B=valid_B,
            tokens_BP=tokens_BP,
        )


class _WithTokens(SplitDataset):
    """A split of images, each batch with its tokens."""

    def __init__(self, images: SplitDataset, reader: TokenReader):
        self._images, self._reader = images, reader

    def __len__(self) -> int:
        return len(self._images)

    def at(self, position_B: Tensor) -> Batch:
        """The samples at those positions."""
        batch = self._images.at(position_B)
        batch.tokens_BP, read_B = self._reader.read(position_B.clamp(max=len(self._reader) - 1))
        batch.valid_B &= read_B
        return batch
