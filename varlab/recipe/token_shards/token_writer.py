"""The writer of token shards: it encodes every image of a shard set, alone or as one of several ranks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from varlab.config import Config
from varlab.data import ShardDataModule
from varlab.data.format.foreign import map_array
from varlab.data.tokens import TokenSet, TokenShard, dtype_for, fingerprint, read_tokens, write_array, write_tokens
from varlab.files import digest, read_bytes, write_text
from varlab.json_file import is_sealed, write_sealed_json
from varlab.recipe.token_shards.rank_stages import RankStages, read_notice
from varlab.run.directory import RunDirectory
from varlab.tokenizer import VQTokenizer
from varlab.types import VarlabError, to_float

__all__ = ["TokenWriter", "origin_of"]

logger = logging.getLogger(__name__)

_MARK = "encoding.json"  # says whose token shards are here, finished or not
_NOTE = ".xxh3"  # the digest of a token shard, until tokens.json has it
_LONGEST_NOTE = 100  # bytes


def origin_of(
    data: ShardDataModule, shards: Config, tokenizer: VQTokenizer, *, run: str, weights_sha256: str
) -> Config:
    """Everything that tokens depend on. shards: the configuration of ``data``. run, weights_sha256: of the tokenizer."""
    return {
        "tokenizer_sha256": weights_sha256,
        "tokenizer_run": run,
        "scales": [list(scale) for scale in tokenizer.scales],
        "data_hash": data.info.hash,
        "image_size": list(data.info.image_size),
        "view": data.info.view,
        "views": data.views,
        "views_seed": shards.get("views_seed", 0),
        "look": {name: shards.get(name) for name in ("augment", "crop")} if data.views else None,
    }


@dataclass(frozen=True)
class _Part:
    """The images of one image shard: numbers first to last (not included) of a split."""

    split: str
    first: int
    last: int
    file: str

    def __len__(self) -> int:
        return self.last - self.first


class TokenWriter:
    """Write the tokens of a shard set into a directory. What a stopped writer has finished is verified and kept.

    directory: locked by rank 0. tokenizer: frozen, on the device that encodes. origin: everything that the tokens depend on,
    in JSON types. batch: images that are encoded at once; a shorter batch is filled up, because the last bits of a
    product of matrices depend on its size. splits: those to encode, None for all. mirrored: encode each training image a second
    time, mirrored left and right, as its second view. run: the run whose ranks these are.
    """

    def __init__(
        self,
        *,
        directory: RunDirectory,
        tokenizer: VQTokenizer,
        data: ShardDataModule,
        origin: Config,
        batch: int,
        run: RunDirectory,
        splits: Sequence[str] | None = None,
        mirrored: bool = False,
    ):
        self._folder, self._directory = directory.path, directory
        self._tokenizer, self._data = tokenizer, data
        self._stages = RankStages(run, directory, file="encoding.json")
        self._origin, self._batch, self._mirrored = origin, batch, mirrored
        self._splits = list(data.info.counts if splits is None else splits)
        self._tokens = sum(h * w for h, w in tokenizer.scales)

    @cached_property
    def finished(self) -> TokenSet | None:
        """The set that an earlier writer finished in the directory, if it is the same one; its files may be damaged."""
        with suppress(VarlabError):
            tokens = read_tokens(self._folder)
            return tokens if digest(tokens.origin) == digest(self._origin) else None
        return None

    def write(self, *, world: int, progress: Callable[[int, int], None]) -> TokenSet:
        """Write this rank's share of the shards, and wait until the set is finished. progress: called with (done, total)."""
        rank, parts = self._directory.rank, self._parts()
        if rank == 0:
            self._clear()
        self._stages.agree("begun", world)
        mine = parts[rank::world]
        todo = [part for part in mine if not self._check(part)]
        if 0 < len(todo) < len(mine):
            logger.info("%d of %d token shards exist already", len(mine) - len(todo), len(mine))
        done, total = 0, sum(map(len, todo))
        for part in todo:
            path = self._folder / part.file
            _note(path, write_array(path, self._encode(part)))
            done += len(part)
            if rank == 0:
                progress(done, total)
        if rank == 0:
            self._finish({part: self._stages.wait(partial(self._check, part)) for part in parts})
        self._stages.agree("written", world)
        return read_tokens(self._folder)

    def _clear(self) -> None:
        """Keep the token shards of this encoding, remove those of another."""
        mark, wanted = self._folder / _MARK, digest(self._origin)
        if read_notice(mark).get("origin_sha256") != wanted:
            for old in [*self._folder.glob("*.npy"), *self._folder.glob(f"*{_NOTE}")]:
                old.unlink()
        elif not is_sealed(mark):  # of an earlier version, which wrote no digests
            for shard in filter(Path.is_file, self._folder.glob("*.npy")):
                _note(shard, fingerprint(shard))
        write_sealed_json(mark, {"origin_sha256": wanted, "origin": self._origin})

    def _check(self, part: _Part) -> str:
        """The digest of a part's token shard; empty where it is not there as it was written."""
        path, known = self._folder / part.file, ""
        for shard in self.finished.splits.get(part.split, ()) if self.finished else ():
            known = shard.check if shard.file == part.file else known
        with suppress(OSError, ValueError, VarlabError):
            if (note := path.with_suffix(_NOTE)).exists():
                known = read_bytes(note, _LONGEST_NOTE).decode()
            # A digest may be of what lay there before: compare the number of images, too.
            map_array(path, shape=(len(part), None, self._tokens), dtype=dtype_for(self._tokenizer.vocab_size))
            return known if fingerprint(path) == known else ""
        return ""

    def _parts(self) -> list[_Part]:
        parts = []
        for split in self._splits:
            first = 0
            for number, shard in enumerate(self._data.index.splits[split]):
                parts.append(_Part(split, first, first + shard.count, f"{split}-{number:06d}.npy"))
                first += shard.count
        return [part for part in parts if len(part)]

    def _encode(self, part: _Part) -> NDArray[np.integer]:
        """Tokens [N, views, P] of the part's images; the largest number for an image that cannot be read."""
        rows = []
        for images in self._data.in_order(part.split, part.first, part.last, self._batch):
            views = [images.img_u8_B3HW]
            if self._mirrored and part.split == "train":
                views.append(views[0].flip(3))
            idx_BVP = np.stack([self._idx(img_u8_B3HW) for img_u8_B3HW in views], 1)
            idx_BVP[~images.valid_B.numpy()] = np.iinfo(idx_BVP.dtype).max
            rows.append(idx_BVP)
        return np.concatenate(rows).reshape(len(part), -1, self._tokens)

    def _idx(self, img_u8_B3HW: Tensor) -> NDArray[np.integer]:
        """idx_BP of a batch."""
        missing = self._batch - len(img_u8_B3HW)
        img_B3HW = to_float(F.pad(img_u8_B3HW, (0, 0) * 3 + (0, missing)) if missing else img_u8_B3HW)
        maps = self._tokenizer.encode(img_B3HW.to(self._tokenizer.last_layer.device))
        idx_BP: Tensor = torch.cat(maps, 1)[: len(img_u8_B3HW)]
        return idx_BP.cpu().numpy().astype(dtype_for(self._tokenizer.vocab_size))

    def _finish(self, checks: Mapping[_Part, str]) -> None:
        """Write the labels and ``tokens.json``. checks: the digest of each part."""
        splits: dict[str, list[TokenShard]] = {split: [] for split in self._splits}
        bad = dict.fromkeys(splits, 0)
        for part, check in checks.items():
            splits[part.split].append(TokenShard(part.file, len(part), check))
            first_N = np.load(self._folder / part.file, mmap_mode="r", allow_pickle=False)[:, 0, 0]
            bad[part.split] += int((first_N == np.iinfo(first_N.dtype).max).sum())
        tokens = TokenSet(
            folder=self._folder,
            origin=self._origin,
            images=self._data.reading_arguments,
            views=max(self._data.views, 1 + self._mirrored),
            tokens=self._tokens,
            vocab_size=self._tokenizer.vocab_size,
            splits={split: tuple(of) for split, of in splits.items() if of},
            bad=bad,
            labels={split: self._write_labels(split) for split, of in splits.items() if of},
        )
        write_tokens(tokens)
        for part in checks:
            (self._folder / part.file).with_suffix(_NOTE).unlink(missing_ok=True)

    def _write_labels(self, split: str) -> TokenShard:
        label_N = self._data.labels(split).numpy().astype(np.int32)
        path = self._folder / f"{split}.labels.npy"
        return TokenShard(path.name, len(label_N), write_array(path, label_N))


def _note(shard: Path, check: str) -> None:
    """Write the digest of a token shard beside it, where it lies until the set is finished."""
    write_text(shard.with_suffix(_NOTE), check)
