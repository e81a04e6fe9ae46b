"""``index.json``: what a folder of WebDataset shards says of itself.

The shards are plain tars that webdataset reads without us; the index adds what a tar cannot tell: how many samples and
bytes there should be (so that a cut shard is noticed), the classes' names and the image size.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from varlab.errors import VarlabError
from varlab.types import DataInfo

__all__ = ["FILE", "SPLITS", "VERSION", "Index", "Shard", "read_index", "write_index"]

FILE = "index.json"
VERSION = 1
SPLITS = ("train", "val")


@dataclass(frozen=True)
class Shard:
    """One tar. ``count`` samples, ``bytes`` long, ``sha256`` of the whole file."""

    file: str
    count: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """A shard set. ``source`` tells how it was made; ``image_size`` is (H, W) in pixels.

    conditions: what the second image of each sample is, None where there is none. boxes: whether each sample says where in
    its picture it lies. Neither is written where it is absent: shards without conditions are what they always were.
    """

    path: Path
    source: dict[str, Any]
    classes: tuple[str, ...]
    image_size: tuple[int, int]
    splits: dict[str, tuple[Shard, ...]]
    conditions: str | None = None
    boxes: bool = False

    @property
    def content(self) -> dict[str, Any]:
        """All that decides the samples, in JSON types: neither where the set lies nor where it came from."""
        return {
            "version": VERSION,
            "classes": list(self.classes),
            "image_size": list(self.image_size),
            "splits": {split: [asdict(s) for s in shards] for split, shards in self.splits.items()},
            **({} if self.conditions is None else {"conditions": self.conditions}),
            **({"boxes": True} if self.boxes else {}),
        }

    @property
    def hash(self) -> str:
        """sha256 over the canonical content: equal hashes mean equal bytes in every shard."""
        canonical = json.dumps(self.content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def info(self) -> DataInfo:
        """What other rooms are told."""
        arguments = ", ".join(f"{k}={v}" for k, v in self.source.items() if k != "name")
        return DataInfo(
            path=str(self.path),
            classes=self.classes,
            image_size=self.image_size,
            counts={split: sum(s.count for s in shards) for split, shards in self.splits.items()},
            hash=self.hash,
            source=f"{self.source.get('name', 'unknown')}({arguments})",
            condition=self.conditions,
            boxes=self.boxes,
        )


def read_index(path: str | Path) -> Index:
    """The index of the shard set in folder ``path``.

    Raises:
        VarlabError: no such folder, no shard set in it, or an index that is not of this version.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise VarlabError(f"There is no shard folder {folder}: pack one with `varlab pack` or correct data.path.")
    if not any(folder.iterdir()):
        raise VarlabError(f"The shard folder {folder} is empty: pack into it with `varlab pack` or correct data.path.")
    if not (folder / FILE).is_file():
        raise VarlabError(f"{folder} has no {FILE}, so its packing never finished: run `varlab pack` again.")
    index = _parse(folder, (folder / FILE).read_text())
    if not any(s.count for shards in index.splits.values() for s in shards):
        raise VarlabError(f"The shard set {folder} holds no images: pack it again from a source that has some.")
    return index


def _parse(folder: Path, text: str) -> Index:
    try:
        raw = json.loads(text)
        if raw["version"] != VERSION:
            raise VarlabError(f"{folder / FILE} has version {raw['version']}, not {VERSION}: run `varlab pack` again.")
        height, width = raw["image_size"]
        return Index(
            path=folder,
            source=dict(raw["source"]),
            classes=tuple(raw["classes"]),
            image_size=(int(height), int(width)),
            splits={split: tuple(Shard(**s) for s in shards) for split, shards in raw["splits"].items()},
            conditions=raw.get("conditions"),
            boxes=bool(raw.get("boxes", False)),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as e:
        raise VarlabError(f"{folder / FILE} is damaged ({type(e).__name__}: {e}): run `varlab pack` again.") from e


def write_index(index: Index) -> None:
    """Write ``index.json`` into ``index.path``, whole or not at all.

    Raises:
        VarlabError: it could not be written (a full disk, for one).
    """
    text = json.dumps({**index.content, "source": index.source}, indent=1, ensure_ascii=False) + "\n"
    temporary = index.path / f".{FILE}.partial"
    with writing(index.path / FILE):
        try:
            with temporary.open("w", encoding="utf-8") as f:
                f.write(text)
                f.flush()
                os.fsync(f.fileno())
            temporary.replace(index.path / FILE)
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turns an OSError of the body into one sentence about the file that could not be written."""
    try:
        yield
    except OSError as e:
        full = e.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "the disk is full: make room and run the same command again" if full else (e.strerror or str(e))
        raise VarlabError(f"Could not write {path}: {remedy}.") from e
