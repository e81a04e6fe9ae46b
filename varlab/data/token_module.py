"""Training from token shards: the same walk as over the images, without pixels and without a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from varlab.data.faults import FaultCounter
from varlab.data.image.augment import Augment
from varlab.data.read.batches import TrainBatches
from varlab.data.read.epochs import ATTEMPTS, Walk
from varlab.data.read.loader import Loader
from varlab.data.shard_module import ShardDataModule
from varlab.data.tokens import TokenReader, TokenSet, read_tokens
from varlab.errors import VarlabError
from varlab.types import Batch, DataInfo

__all__ = ["TokenDataModule", "shards_or_tokens"]


class TokenDataModule(LightningDataModule):
    """Training batches of tokens; evaluation batches of images with their tokens, for losses and for scores.

    Args:
        path: what ``varlab encode`` wrote. images: the data module of the shard set that it was made from, or None for the
            one that it remembers. batch, eval_batch, seed, workers, open_shards: as of ``ShardDataModule``; with the same
            seed the same images come in the same order, each in the same of its ways.

    Raises:
        VarlabError: no tokens there; tokens of other images than ``images`` holds.
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
        super().__init__()
        self.path, self.batch, self.eval_batch = path, batch, eval_batch
        self._seed, self._workers, self._open_shards, self._given = seed, workers, open_shards, images
        self._readers: dict[str, TokenReader] = {}
        self.start = 0
        self.stop: int | None = None

    @cached_property
    def tokens(self) -> TokenSet:
        """What is told of the tokens."""
        return read_tokens(self.path)

    @cached_property
    def shards(self) -> ShardDataModule:
        """The images that the tokens stand for."""
        origin = self.tokens.origin
        shards = self._given or ShardDataModule(
            **self.tokens.images,
            augment=Augment(flip=False, crop=1.0, noise=0.0),
            batch=self.batch,
            eval_batch=self.eval_batch,
            seed=self._seed,
            workers=self._workers,
        )
        if shards.info.hash != origin["data_hash"]:
            raise VarlabError(f"{self.path} holds tokens of other images than lie in {shards.path}: encode those anew.")
        return shards

    @property
    def info(self) -> DataInfo:
        """That of the images, and the hash of the tokens."""
        tokens, info = self.tokens, self.shards.info
        images = {split: sum(shard.count for shard in shards) for split, shards in tokens.splits.items()}
        encoded = sum(n * (tokens.views if split == "train" else 1) for split, n in images.items())
        return replace(info, tokens=tokens.hash, encoded=encoded)

    @property
    def watches(self) -> dict[str, FaultCounter]:
        """The bad samples that were met, by split."""
        return self.shards.watches

    def reader(self, split: str) -> TokenReader:
        """The tokens of a split by number."""
        if split not in self._readers:
            self._readers[split] = TokenReader(self.tokens, split)
        return self._readers[split]

    def images(self, split: str, index_N: Tensor | None = None) -> Tensor:
        """Images of a split by number, uint8 ``img_N3HW``."""
        return self.shards.images(split, index_N)

    def samples(self, split: str, index_N: Tensor | None = None) -> Batch:
        """Samples of a split by number, as images."""
        return self.shards.samples(split, index_N)

    def labels(self, split: str) -> Tensor:
        """All labels of a split, int64 ``label_N``."""
        return self.reader(split).label_N

    def train_loader(self, start: int, stop: int, rank: int, world: int) -> DataLoader[Batch]:
        """This rank's shares of the global batches from position ``start`` until at least ``stop``; sized. Tokens alone."""
        batches = TrainBatches(start=start, stop=stop, batch=self.batch, rank=rank, world=world)
        reader = self.reader("train")
        walk = Walk(seed=self._seed, shard_N=reader.shard_N, views=self.tokens.views, open_shards=self._open_shards)
        watch = FaultCounter(where=self.path, split="train", n=len(reader), most=1.0)
        return Loader(_TokenStream(reader, walk), batches, workers=self._workers, watch=watch)

    def eval_loader(self, split: str, rank: int, world: int, batch: int | None = None) -> DataLoader[Batch]:
        """As that of the images, each batch with its tokens, where those are of the images as they are."""
        loader = self.shards.eval_loader(split, rank, world, batch)
        if split == "train" and self.tokens.origin["views"]:
            return loader
        return _WithTokens(loader, self.reader(split))  # type: ignore[return-value]  # an iterable of batches, as asked

    def train_dataloader(self) -> DataLoader[Batch]:
        """Lightning's hook: from ``start`` to ``stop`` on the trainer's ranks."""
        if self.stop is None:
            raise VarlabError("The data module has no stop: set the number of images to train before fit.")
        trainer = self.trainer
        rank, world = (0, 1) if trainer is None else (trainer.global_rank, trainer.world_size)
        return self.train_loader(self.start, self.stop, rank, world)


def shards_or_tokens(*, tokens: str | None, **shards: Any) -> ShardDataModule | TokenDataModule:
    """The data module of a shard set; with ``tokens``, the folder of what ``varlab encode`` made of it, trained from those.

    shards: arguments of ``ShardDataModule``; those that say how images are seen have no say in what was encoded.
    """
    images = ShardDataModule(**shards)
    if tokens is None:
        return images
    own = {name: shards[name] for name in ("batch", "eval_batch", "seed", "workers")}
    return TokenDataModule(path=tokens, images=images, open_shards=shards.get("open_shards"), **own)


class _TokenStream(Dataset[Batch]):
    """The stream of tokens, keyed by global position; images that could not be read are replaced as the image stream does."""

    def __init__(self, reader: TokenReader, walk: Walk):
        self._reader, self._walk = reader, walk

    def __getitem__(self, position: int) -> Batch:
        return self.__getitems__([position])

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        position_B = torch.as_tensor(positions, dtype=torch.int64)
        index_B, view_B = self._walk.locate(position_B), self._walk.view(position_B)
        tokens_BP, valid_B = self._reader.read(index_B, view_B)
        for attempt in range(1, ATTEMPTS + 1):
            if bool(valid_B.all()):
                break
            row_b = (~valid_B).nonzero()[:, 0]
            index_B[row_b] = self._walk.substitute(position_B[row_b], attempt)
            tokens_BP[row_b], valid_B[row_b] = self._reader.read(index_B[row_b], view_B[row_b])
        return Batch(
            img_u8_B3HW=torch.empty((len(index_B), 3, 0, 0), dtype=torch.uint8),
            label_B=self._reader.label_N[index_B],
            position_B=position_B,
            valid_B=valid_B,
            tokens_BP=tokens_BP,
        )


class _WithTokens:
    """A loader of images, each batch with its tokens."""

    def __init__(self, loader: DataLoader[Batch], reader: TokenReader):
        self._loader, self._reader = loader, reader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._loader:
            batch.tokens_BP, read_B = self._reader.read(batch.position_B.clamp(max=len(self._reader) - 1))
            batch.valid_B &= read_B
            yield batch
