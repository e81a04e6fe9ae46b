"""Token shards: the token maps of every image of a shard set, encoded once, so that training needs no tokenizer.

``tokens.json`` describes them. ``train-000000.npy`` holds the tokens of the image shard of that number, unsigned integers
[N, views, P] (P: all scales in a row); ``train.labels.npy`` holds the labels. ``tokens.json`` has a digest of each file.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_128

from varlab.config import Config
from varlab.data.format.foreign import Entries, read_entries
from varlab.errors import VarlabError
from varlab.files import atomic_write, require_plain
from varlab.json_file import write_json

__all__ = [
    "TOKENS",
    "TokenSet",
    "TokenShard",
    "dtype_for",
    "fingerprint",
    "read_tokens",
    "write_array",
    "write_tokens",
]

TOKENS = "tokens.json"
RUN = "run.json"  # says that an encoding is finished
VERSION = 1
_DIGEST = "sha256"  # the entry with the hash of what decides the tokens; older sets have none


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
    image. bad: images of each split that could not be read. labels: the file of the labels of each split; older sets have
    no digest of them.
    """

    folder: Path
    origin: Config
    images: Config
    views: int
    tokens: int
    vocab_size: int
    splits: Mapping[str, tuple[TokenShard, ...]]
    bad: Mapping[str, int]
    labels: Mapping[str, TokenShard] = field(default_factory=dict)

    @property
    def content(self) -> Config:
        """Everything that decides the tokens, in JSON types."""
        return {
            "version": VERSION,
            **{name: getattr(self, name) for name in ("origin", "views", "tokens", "vocab_size", "bad")},
            "splits": {split: [asdict(shard) for shard in shards] for split, shards in self.splits.items()},
            **({"labels": {split: asdict(file) for split, file in self.labels.items()}} if self.labels else {}),
        }

    def require_same_images(self, path: str, data_hash: str) -> None:
        """Raise VarlabError unless the tokens were made from the images of a shard set with this hash. path: names the set."""
        if data_hash != self.origin.get("data_hash"):
            raise VarlabError(
                f"The tokens of {self.folder} were made from other images than {path} holds: run `varlab encode` again."
            )

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
        entries = read_entries(path)
        if (version := entries.raw.get("version")) != VERSION:
            raise VarlabError(f"{path} has version {version!r:.20}, not {VERSION}: run `varlab encode` again.")
        tokens = _parse(Path(folder), entries)
        if entries.raw.get(_DIGEST, tokens.hash) != tokens.hash:
            raise ValueError("it was changed after it was written")
        return tokens
    except FileNotFoundError as e:
        raise VarlabError(
            f"{folder} holds no {TOKENS}: run `varlab encode runs/tokenizer out={folder}`; a stopped encoding continues."
        ) from e
    except (OSError, ValueError) as e:
        raise VarlabError(
            f"{path} is damaged ({e}): remove it and {RUN} beside it, and run the same `varlab encode` again."
        ) from e


def _parse(folder: Path, entries: Entries) -> TokenSet:
    """Raises ValueError if an entry is missing or wrong."""
    splits, labels = Entries(entries.mapping("splits")), Entries(entries.raw.get("labels", {}))
    return TokenSet(
        folder=folder,
        origin=dict(entries.mapping("origin")),
        images=dict(entries.mapping("images")),
        views=entries.number("views", least=1),
        tokens=entries.number("tokens", least=1),
        vocab_size=entries.number("vocab_size", least=1),
        splits={split: tuple(map(_file, splits.objects(split))) for split in splits.raw},
        bad=entries.counts("bad"),
        labels={split: _file(Entries(labels.mapping(split))) for split in labels.raw},
    )


def _file(entries: Entries) -> TokenShard:
    return TokenShard(entries.file("file"), entries.number("count"), entries.text("check"))


def write_tokens(tokens: TokenSet) -> None:
    """Write ``tokens.json``, which marks the set as finished."""
    write_json(tokens.folder / TOKENS, {**tokens.content, "images": dict(tokens.images), _DIGEST: tokens.hash})


def dtype_for(vocab_size: int) -> np.dtype[np.unsignedinteger]:
    """The smallest unsigned type for a vocabulary. Its largest number marks an image that could not be read."""
    return np.dtype("<u2") if vocab_size < (1 << 16) else np.dtype("<u4")


def write_array(path: Path, array: NDArray[np.integer]) -> str:
    """Write numpy's file format, atomically; return the fingerprint of the file.

    Raises:
        VarlabError: the file could not be written.
    """
    content = io.BytesIO()  # numpy itself would not say that a disk is full
    np.lib.format.write_array(content, array, version=(1, 0), allow_pickle=False)
    with atomic_write(path) as file:
        file.write(content.getbuffer())
    return xxh3_128(content.getbuffer()).hexdigest()


def fingerprint(path: Path) -> str:
    """xxh3 of a file's bytes: 128 bits, hexadecimal."""
    with require_plain(path).open("rb") as file:
        return hashlib.file_digest(file, xxh3_128).hexdigest()
