"""The tokens of a training's images, encoded once before its first update, where that saves work and changes no bit."""

from __future__ import annotations

import logging
import math
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from varlab.config import Config
from varlab.data import BaseDataModule, ShardDataModule, TokenDataModule
from varlab.data.tokens import dtype_for
from varlab.errors import VarlabError
from varlab.files import digest, remove_drafts
from varlab.model import Model
from varlab.recipe.token_shards.token_writer import TokenWriter, origin_of
from varlab.run.directory import RunDirectory
from varlab.run.record import Parent
from varlab.tokenizer import VQTokenizer

__all__ = ["TokenCache", "token_cache"]

logger = logging.getLogger(__name__)

PAYS = 1.5
"""``auto`` encodes once if the training would encode so many times as many images in its batches: it saves a third or more."""

_POLL = 0.1  # seconds

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
        """``tokens/HASH`` beside the run."""
        return self.run.path.parent / "tokens" / digest(self.origin)[:16]

    @property
    def images(self) -> int:
        """How many images are encoded: each training image in each way it is seen."""
        return self.data.info.counts["train"] * self.data.looks

    @property
    def size(self) -> int:
        """Bytes of the tokens."""
        tokens = sum(h * w for h, w in self.tokenizer.scales)
        return self.images * tokens * dtype_for(self.tokenizer.vocab_size).itemsize

    def unwise(self, images: int | None) -> str:
        """Why a training of so many images (None: not known yet) had better encode each batch; empty if it had not."""
        if images is None:
            return "budget.seconds does not say how many images are trained on"
        if images < PAYS * self.images:
            return f"{images:,} images are trained on, and {self.images:,} would be encoded"
        if (free := shutil.disk_usage(self.run.path).free) < 2 * self.size:
            return f"the tokens take {self.size / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB of the disk are free"
        return ""

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
            what = "reading the tokens of" if writer.finished else "encoding once, before the first update,"
            size = f"{self.images:,} images, {self.size / 1e6:,.1f} MB"
            logger.info("%s %s: %s (encode_once=false: each batch is encoded)", what, size, self.folder)
        writer.write(world=world, progress=progress)


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
    """Decide whether a training encodes its images once; None where each batch is encoded, or brings tokens.

    images: how many the budget trains on; None if that is not known. batch: see ``TokenCache``. A resumed run does as it
    began. Raises VarlabError if ``encode_once=true`` is asked for and cannot be.
    """
    asked = config.get("encode_once", False)
    if asked not in ("auto", True, False):
        raise VarlabError(f"encode_once={asked} is unknown: use auto, true or false.")
    if not asked or isinstance(data, TokenDataModule):
        return None
    if type(data) is not ShardDataModule or not data.looks or model.condition is not None:
        return _refused(asked, _endless(data, model))
    began = run.record().cost
    if began and not began.get("encoded_images"):
        return _refused("auto", "this run began so")
    origin = origin_of(data, config["data"], model.tokenizer, run=parent.run, weights_sha256=parent.weights_sha256)
    origin |= {"mirrored": not data.views and data.looks == 2, "batch": batch}
    origin |= {name: config["trainer"][name] for name in ("precision", "accelerator")}
    cache = TokenCache(data=data, tokenizer=model.tokenizer, origin=origin, run=run, batch=batch)
    why = _agreed(cache, images) if asked == "auto" and not began else ""
    return _refused(asked, why) if why else cache


def _refused(asked: object, why: str) -> TokenCache | None:
    """None, and a sentence why."""
    if asked is True:
        raise VarlabError(f"encode_once=true cannot be kept: {why}. Use encode_once=auto.")
    logger.info("each batch is encoded when it is trained on (encode_once=%s): %s", asked, why)
    return None


def _endless(data: BaseDataModule, model: Model) -> str:
    """Why the images of a training cannot be encoded once."""
    if model.condition is not None:
        return "the condition is made from the images"
    varies = type(data) is ShardDataModule
    return "data.crop or data.augment changes an image each time" if varies else f"{data.path} is no indexed shard set"


def _agreed(cache: TokenCache, images: int | None) -> str:
    """Why each batch had better be encoded, as rank 0 sees it: the free room may differ between ranks, which read run.json."""
    if cache.run.rank == 0:
        why = cache.unwise(images)
        cache.run.update(cost={"encoded_images": 0 if why else cache.images})
        return why
    while "encoded_images" not in (cost := cache.run.record().cost):
        time.sleep(_POLL)
    return "" if cost["encoded_images"] else "rank 0 says why"
