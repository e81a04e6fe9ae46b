"""Token shards: the token maps of every image of a shard set, encoded once, so that training needs no tokenizer.

``tokens.json`` describes them. ``train-000000.npy`` holds the tokens of the image shard of that number, unsigned integers
[N, views, P] (P: all scales in a row); ``train.labels.npy`` holds the labels.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from xxhash import xxh3_128

from varlab.config import Config
from varlab.errors import VarlabError
from varlab.files import atomic_write, write_json

__all__ = [
    "TOKENS",
    "TokenReader",
    "TokenSet",
    "TokenShard",
    "dtype_for",
    "fingerprint",
    "read_tokens",
    "write_array",
    "write_tokens",
]

TOKENS = "tokens.json"
VERSION = 1


@dataclass(frozen=True)
class TokenShard:
    """One file: ``count`` images with all their views. check: xxh3 (128 bits) of its bytes."""

    file: str
    count: int
    check: str


@dataclass(frozen=True)
class TokenSet:
    """All token maps of a shard set.

    origin: the settings that decide the tokens, in JSON types (see ``varlab encode``). images: the arguments of
    ``ShardDataModule`` that open the images. views: views of each training image; other splits have one. tokens: tokens per
    image. bad: images of each split that could not be read.
    """

    folder: Path
    origin: Config
    images: Config
    views: int
    tokens: int
    vocab_size: int
    splits: Mapping[str, tuple[TokenShard, ...]]
    bad: Mapping[str, int]

    @property
    def content(self) -> Config:
        """Everything that decides the tokens, in JSON types."""
        return {
            "version": VERSION,
            **{name: getattr(self, name) for name in ("origin", "views", "tokens", "vocab_size", "bad")},
            "splits": {split: [asdict(shard) for shard in shards] for split, shards in self.splits.items()},
        }

    @property
    def hash(self) -> str:
        """sha256 of the content: equal hashes mean equal tokens."""
        return hashlib.sha256(json.dumps(self.content, sort_keys=True).encode()).hexdigest()


def read_tokens(folder: str | Path) -> TokenSet:
    """The token set in a folder.

    Raises:
        VarlabError: the folder has no token set, or one that is damaged or of another version.
    """
    path = Path(folder) / TOKENS
    try:
        raw = json.loads(path.read_text())
        if raw["version"] != VERSION:
            raise VarlabError(f"{path} has version {raw['version']}, not {VERSION}: run `varlab encode` again.")
        splits = {split: tuple(TokenShard(**s) for s in shards) for split, shards in raw["splits"].items()}
        rest = {name: raw[name] for name in ("origin", "images", "views", "tokens", "vocab_size", "bad")}
        return TokenSet(folder=Path(folder), splits=splits, **rest)
    except FileNotFoundError as e:
        raise VarlabError(
            f"{folder} holds no {TOKENS}: run `varlab encode runs/tokenizer out={folder}`; a stopped encoding continues."
        ) from e
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
        raise VarlabError(f"{path} is damaged ({type(e).__name__}: {e}): run `varlab encode` again.") from e


def write_tokens(tokens: TokenSet) -> None:
    """Write ``tokens.json``, which marks the set as finished."""
    write_json(tokens.folder / TOKENS, {**tokens.content, "images": dict(tokens.images)})


def dtype_for(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """The smallest unsigned type for a vocabulary. Its largest number marks an image that could not be read."""
    return np.dtype("<u2") if vocab_size < (1 << 16) else np.dtype("<u4")


def write_array(path: Path, array: NDArray[np.integer]) -> None:
    """Write numpy's file format, atomically.

    Raises:
        VarlabError: the file could not be written.
    """
    with atomic_write(path) as file:
        np.lib.format.write_array(file, array, version=(1, 0), allow_pickle=False)


def fingerprint(path: Path) -> str:
    """xxh3 of a file's bytes: 128 bits, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, xxh3_128).hexdigest()


class TokenReader:
    """The token maps of a split by number. Files are mapped into memory; each process checks a file before its first use.

    Raises:
        VarlabError: the split has no tokens; later, on reading: a file is missing or has changed.
    """

    def __init__(self, tokens: TokenSet, split: str):
        self._folder, self._shards = tokens.folder, tokens.splits.get(split, ())
        if not self._shards:
            raise VarlabError(f"{tokens.folder} holds no {split} tokens: encode a shard set that has that split.")
        self._dtype, self._tokens = dtype_for(tokens.vocab_size), tokens.tokens
        self.shard_N = np.repeat(np.arange(len(self._shards)), [shard.count for shard in self._shards])
        self._first_S = np.concatenate([[0], np.cumsum([shard.count for shard in self._shards])[:-1]])
        self.label_N = torch.from_numpy(self._load(f"{split}.labels.npy").astype(np.int64))
        self._maps: dict[int, NDArray[np.integer]] = {}

    def __len__(self) -> int:
        return len(self.shard_N)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_maps": {}}

    def read(self, index_B: Tensor, view_B: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """idx_BP int32 of those images, each in one of its views; and which of them could be read (bool)."""
        views = view_B.tolist() if view_B is not None else [0] * len(index_B)
        idx_BP = np.empty((len(index_B), self._tokens), dtype=self._dtype)
        index = index_B.numpy()
        shards = self.shard_N[index]
        rows: Sequence[int] = (index - self._first_S[shards]).tolist()
        for place, (shard, row, view) in enumerate(zip(shards.tolist(), rows, views, strict=True)):
            idx_BP[place] = self._map(shard)[row, view]
        valid_B = torch.from_numpy(idx_BP[:, 0] != np.iinfo(self._dtype).max)
        return torch.from_numpy(idx_BP.astype(np.int32)), valid_B

    def _map(self, shard: int) -> NDArray[np.integer]:
        if shard not in self._maps:
            file = self._shards[shard]
            path = self._folder / file.file
            if not path.is_file():
                raise VarlabError(f"{path} is missing: run `varlab encode` again, or copy it here.")
            if fingerprint(path) != file.check:
                raise VarlabError(
                    f"{path} holds other bytes than were written: delete it and run `varlab encode` again."
                )
            self._maps[shard] = self._load(file.file)
        return self._maps[shard]

    def _load(self, file: str) -> NDArray[np.integer]:
        path = self._folder / file
        try:
            array: NDArray[np.integer] = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as e:
            raise VarlabError(f"{path} cannot be read ({e}): run `varlab encode` again, or copy it here.") from e
        return array
