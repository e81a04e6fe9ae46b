"""The tokens of a training's images, encoded once before its first update, where that saves work and changes no bit."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from varlab.config import Config
from varlab.data import BaseDataModule, ShardDataModule, TokenDataModule
from varlab.data.tokens import dtype_for
from varlab.errors import VarlabError
from varlab.files import digest, remove_drafts, require_room
from varlab.model import Model
from varlab.recipe.token_shards.token_writer import TokenWriter, origin_of
from varlab.run.directory import RunDirectory
from varlab.run.record import Parent
from varlab.tokenizer import VQTokenizer

__all__ = ["TokenCache", "token_cache"]

logger = logging.getLogger(__name__)

PAYS = 1.5
"""``auto`` encodes once if the training would encode so many times as many images in its batches: it saves a third or more."""

Progress = Callable[[int, int], None]


@dataclass(frozen=True, kw_only=True)
class TokenCache:
    """The tokens of the train split in a folder beside the run, which is named by all that decides them.

    Jobs that train from the same tokens share it: one encodes, the others wait for its lock. run: the training's directory.
    batch: images that a rank encodes at once in training; the same here, so that no token differs by a rounding.
    """

    data: ShardDataModule
    tokenizer: VQTokenizer
    origin: Config
    run: RunDirectory
    batch: int

    @property
    def folder(self) -> Path:
        """``.tokens/HASH`` beside the run, or in the run where nothing can be written beside it."""
        places = [base / ".tokens" / digest(self.origin)[:16] for base in (self.run.path.parent, self.run.path)]
        return next(filter(_can_write, places), places[-1])

    @property
    def images(self) -> int:
        """How many images are encoded: each training image in each way it is seen."""
        return self.data.info.counts["train"] * self.data.looks

    @property
    def size(self) -> int:
        """Bytes of the tokens."""
        tokens = sum(h * w for h, w in self.tokenizer.scales)
        return self.images * tokens * dtype_for(self.tokenizer.vocab_size).itemsize

    def __str__(self) -> str:
        """Number of images, size and folder."""
        ways = f" (each in {self.data.looks} ways)" if self.data.looks > 1 else ""
        return f"{self.data.info.counts['train']:,} training images{ways}, {self.size / 1e6:,.2f} MB in {self.folder}"

    def fill(
        self, *, world: int, device: torch.device | str, threads: int | None, progress: Progress
    ) -> BaseDataModule:
        """Encode what is not encoded yet, on all ranks; return the data to train from. threads: of torch, as in training."""
        before, home = torch.get_num_threads(), self.tokenizer.last_layer.device
        torch.set_num_threads(threads or before)
        self.tokenizer.to(device)
        self.data.reader("train")  # opens its counter of bad samples, which ranks sum, on all ranks
        try:
            with RunDirectory(self.folder, rank=self.run.rank, patience=math.inf) as directory:
                directory.lock()
                self._write(directory, world, progress)
        finally:
            self.tokenizer.to(home)
            torch.set_num_threads(before)
        return TokenDataModule(path=str(self.folder), images=self.data, **self.data.loading_arguments)

    def _write(self, directory: RunDirectory, world: int, progress: Progress) -> None:
        writer = TokenWriter(
            directory=directory,
            tokenizer=self.tokenizer,
            data=self.data,
            origin=self.origin,
            batch=self.batch,
            run=self.run,
            splits=["train"],
            mirrored=self.origin["mirrored"],
        )
        if directory.rank == 0:
            remove_drafts(directory.path)
            if not writer.finished:
                self._require_room()
            what = "training from the tokens of" if writer.finished else "encoding once, before the first update:"
            logger.info("%s %s (encode_once=false encodes each batch instead)", what, self)
        writer.write(world=world, progress=progress)

    def _require_room(self) -> None:
        there = sum(shard.stat().st_size for shard in self.folder.glob("*.npy"))
        try:
            require_room(self.folder, self.size - there)
        except VarlabError as error:
            raise VarlabError(f"{str(error)[:-1]}, or use encode_once=false.") from error


def token_cache(
    config: Config,
    data: BaseDataModule,
    model: Model,
    parent: Parent,
    run: RunDirectory,
    *,
    images: int | None,
    batch: int,
) -> TokenCache | None:
    """Decide whether a training encodes its images once; None where it encodes each batch, or where ``data`` brings tokens.

    images: how many the budget trains on; None if that is not known. batch: see ``TokenCache``. A resumed run does as it
    began. Raises VarlabError if ``encode_once=true`` is asked for and cannot be.
    """
    asked = config.get("encode_once", False)
    if asked not in ("auto", True, False):
        raise VarlabError(f"encode_once={asked} is unknown: use auto, true or false.")
    if not asked or isinstance(data, TokenDataModule):
        return None
    began = run.record().cost
    why = "this run began so" if began and not began.get("encoded_images") else _obstacle(data, model, images)
    if not why:
        assert isinstance(data, ShardDataModule) and images is not None
        origin = origin_of(data, config["data"], model.tokenizer, run=parent.run, weights_sha256=parent.weights_sha256)
        origin |= {"mirrored": not data.views and data.looks == 2, "batch": batch}
        origin |= {name: config["trainer"][name] for name in ("precision", "accelerator")}
        cache = TokenCache(data=data, tokenizer=model.tokenizer, origin=origin, run=run, batch=batch)
        if began or asked != "auto" or images >= PAYS * cache.images:
            return cache
        why = f"the budget trains on {images:,} images, and {cache.images:,} would be encoded"
    elif asked != "auto" and not began:
        raise VarlabError(f"encode_once=true cannot be kept: {why}. Use encode_once=auto.")
    logger.info("encode_once=%s encodes each batch: %s", asked, why)
    return None


def _obstacle(data: BaseDataModule, model: Model, images: int | None) -> str:
    """Why the images of a training cannot be encoded once; empty if they can."""
    if type(data) is not ShardDataModule:
        return f"{data.path} is no indexed shard set"
    if model.condition is not None:
        return "the condition is made from the images"
    if not data.looks:
        return "data.crop or data.augment changes an image each time"
    return "" if images is not None else "budget.seconds counts the seconds of encoding, update by update"


def _can_write(folder: Path) -> bool:
    """Whether this user may write there, or make the folder; a token set of another user may be there already."""
    there = next(path for path in (folder / ".lock", folder, *folder.parents) if path.exists())
    return os.access(there, os.W_OK)
