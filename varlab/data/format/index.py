"""The index of a folder of WebDataset shards: ``index.json``, and a table of the samples of each split.

The shards are plain tars. The index adds what a tar cannot state: how many samples and bytes belong to it (so that a cut
shard is noticed), the class names, the image size, and where each sample lies and which hash its bytes have
(``train.samples.npy``).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from varlab.config import Config
from varlab.data.format.foreign import Entries, read_entries
from varlab.data.format.table import check_table, read_table
from varlab.data.image.depth import ASSUMED, Depths
from varlab.data.storage.local_folder import LocalFolder, Storage
from varlab.errors import VarlabError
from varlab.files import sha256
from varlab.info import DataInfo

__all__ = ["DIGEST", "FILE", "SHARDS", "SPLITS", "VERSION", "Index", "Shard", "TableFile", "read_index"]

FILE = "index.json"
VERSION = 2
DIGEST = "sha256"  # the entry with the hash of what the index says; older indexes have none
SHARDS = "shards"  # the entry of an index whose shards lie elsewhere
SPLITS = ("train", "val")


@dataclass(frozen=True)
class Shard:
    """One tar: its samples (``count``), its size in bytes, and the SHA-256 of the file."""

    file: str
    count: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class TableFile:
    """The table of a split: its rows (``count``), and the SHA-256 of the file."""

    file: str
    count: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """A shard set.

    source: how it was made. image_size: (H, W) in pixels, None if images differ in size. faults: the samples (or shards) of
    each kind that were left out. conditions: what the second images are (edges, lowres …), None if there are none. boxes:
    whether each sample has the box of its crop. depth: the bits of integers and floats in images of more than 8 bits, by
    which each is scaled. steps: how often each was done to an image on the way to bytes. shards: where the shards lie, None
    if that is beside the index. The file has no entry for faults, conditions, boxes, depths, steps and shards that are
    absent.
    """

    storage: Storage
    source: Config
    classes: tuple[str, ...]
    image_size: tuple[int, int] | None
    splits: Mapping[str, tuple[Shard, ...]]
    tables: Mapping[str, TableFile]
    faults: Mapping[str, int] = field(default_factory=dict)
    conditions: str | None = None
    boxes: bool = False
    depth: Depths = field(default_factory=dict)
    steps: Mapping[str, int] = field(default_factory=dict)
    shards: Storage | None = None

    @property
    def shard_storage(self) -> Storage:
        """Where the shards lie."""
        return self.shards or self.storage

    @property
    def path(self) -> str:
        """The path or URL of the set, as the user gave it."""
        return self.storage.name

    @property
    def content(self) -> Config:
        """Everything that decides the samples, in JSON types: not the path of the set, its source or the steps."""
        return {
            "version": VERSION,
            "classes": list(self.classes),
            "image_size": None if self.image_size is None else list(self.image_size),
            "splits": {split: [asdict(s) for s in shards] for split, shards in self.splits.items()},
            "tables": {split: asdict(table) for split, table in self.tables.items()},
            **({"faults": dict(self.faults)} if self.faults else {}),
            **({} if self.conditions is None else {"conditions": self.conditions}),
            **({"boxes": True} if self.boxes else {}),
            **({"depth": dict(self.depth)} if self.depth else {}),
        }

    @property
    def hash(self) -> str:
        """The SHA-256 of the canonical content: equal hashes mean equal bytes in every shard."""
        canonical = json.dumps(self.content, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return hashlib.sha256(canonical.encode()).hexdigest()

    @property
    def info(self) -> DataInfo:
        """A summary for other rooms. Its image size is (0, 0) if the images differ in size."""
        arguments = ", ".join(f"{k}={v}" for k, v in self.source.items() if k != "name")
        return DataInfo(
            path=self.path,
            classes=self.classes,
            image_size=self.image_size or (0, 0),
            counts={split: table.count for split, table in self.tables.items()},
            hash=self.hash,
            source=f"{self.source.get('name', 'unknown')}({arguments})",
            condition=self.conditions,
            boxes=self.boxes,
        )

    def require_size(self, size: tuple[int, int] | None) -> None:
        """Raise VarlabError if the images differ in size and ``size`` does not say what to cut them to."""
        if size is None and self.image_size is None:
            raise VarlabError(f"{self.path} holds images of various sizes: set the size of training (data.size=256).")

    def require_view(self, view: str) -> None:
        """Raise VarlabError if ``view`` is "condition" and there are no second images."""
        if view == "condition" and self.conditions is None:
            raise VarlabError(f"{self.path} holds no conditions to view: pack some (varlab pack condition=edges).")

    def table(self, split: str) -> NDArray[np.void]:
        """The table of a split, mapped into memory.

        Raises:
            VarlabError: the split has no samples, or its table is missing or is not the one that was indexed.
        """
        table = self.tables.get(split)
        if table is None or not table.count:
            raise VarlabError(f"The shard set {self.path} holds no {split} images: pack one that does.")
        remedy = f"run `varlab index {self.path}` again"
        try:
            path = self.storage.local(table.file, None, table.sha256)
            if sha256(path) != table.sha256:
                raise VarlabError(f"{self.path}/{table.file} is not the one that {FILE} names: {remedy}.")
            array = read_table(path, table.count, conditions=self.conditions is not None, boxes=self.boxes)
            shards = self.splits.get(split, ())
            check_table(
                array,
                count_S=[shard.count for shard in shards],
                bytes_S=[shard.bytes for shard in shards],
                classes=len(self.classes),
            )
            return array
        except (OSError, ValueError) as e:
            raise VarlabError(f"{self.path}/{table.file} cannot be read ({e}): {remedy}.") from e


def read_index(storage: str | Path | Storage, *, shards: Storage | None = None) -> Index:
    """Read the index of the shard set in a folder or storage. shards: where the shards lie now; None: where the index says.

    Raises:
        VarlabError: there is no such folder, no shard set in it, or its index is damaged or of another version.
    """
    if isinstance(storage, str | Path):
        storage = LocalFolder(Path(storage))
    if isinstance(storage, LocalFolder):
        _check_folder(storage.path)
    try:
        entries = read_entries(storage.local(FILE))
        index = _parse(storage, entries)
        place = entries.text(SHARDS) if SHARDS in entries.raw else None
    except OSError as e:
        raise VarlabError(f"{storage.name}/{FILE} cannot be read ({e}): correct data.path.") from e
    except ValueError as e:
        raise VarlabError(f"{storage.name}/{FILE} is damaged ({e}): run `varlab pack` or `varlab index` again.") from e
    if shards is not None or place is not None:
        index = replace(index, shards=shards or _elsewhere(storage, str(place)))
    if not any(table.count for table in index.tables.values()):
        raise VarlabError(f"The shard set {storage.name} holds no images: pack it again from a source that has some.")
    if entries.raw.get(DIGEST, index.hash) != index.hash:
        raise VarlabError(
            f"{storage.name}/{FILE} was changed after it was written: run `varlab index {storage.name}` again."
        )
    return index


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        # varlab pack names a folder by what was typed, as runs/data/source=digits
        words = f" {path.name.replace('+', ' ')}" if path.name.startswith("source=") else ""
        raise VarlabError(f"There is no shard folder {path}: pack one with `varlab pack{words}` or correct data.path.")
    if not any(path.iterdir()):
        raise VarlabError(f"The shard folder {path} is empty: pack into it with `varlab pack` or correct data.path.")
    if not ((path / FILE).is_file() or (path / "run.json").is_file() or any(path.glob("*.tar*"))):
        raise VarlabError(
            f"{path} holds no shards: pack its pictures with `varlab pack source=folder path={path} out=DIR`, then give "
            "data.path=DIR."
        )
    if not (path / FILE).is_file():
        raise VarlabError(
            f"{path} has no {FILE}: run `varlab pack` again to finish its packing, or `varlab index {path}` for shards "
            "from elsewhere."
        )


def _elsewhere(storage: Storage, path: str) -> Storage:
    """The folder of shards that an index names, by a path that may be relative to the index."""
    if not isinstance(storage, LocalFolder) or not (storage.path / path).is_dir():
        raise VarlabError(
            f"The shards that {storage.name} indexes are no longer at {path}: set data.shards to where they are now."
        )
    return LocalFolder(storage.path / path)


def _parse(storage: Storage, entries: Entries) -> Index:
    """Raises ValueError if an entry is missing or wrong."""
    if (version := entries.raw.get("version")) != VERSION:
        name = f"{storage.name}/{FILE}"
        raise VarlabError(f"{name} has version {version!r:.20}, not {VERSION}: run `varlab index {storage.name}`.")
    splits, tables = Entries(entries.mapping("splits")), Entries(entries.mapping("tables"))
    conditions = entries.raw.get("conditions")
    return Index(
        storage=storage,
        source=dict(entries.mapping("source")),
        classes=entries.texts("classes"),
        image_size=entries.size("image_size"),
        splits={split: tuple(map(_shard, splits.objects(split))) for split in splits.raw},
        tables={split: _table_file(Entries(tables.mapping(split))) for split in tables.raw},
        faults=entries.counts("faults"),
        conditions=None if conditions is None else entries.text("conditions"),
        boxes=entries.raw.get("boxes", False) is True,
        depth=_depth(entries.counts("depth")),
        steps=entries.counts("steps"),
    )


def _depth(depth: Depths) -> Depths:
    if not all(kind in ASSUMED and 1 <= bits <= 16 for kind, bits in depth.items()):
        raise ValueError(f"its entry 'depth' is {dict(depth)}")
    return depth


def _shard(entries: Entries) -> Shard:
    file, count = entries.file("file"), entries.number("count")
    return Shard(file, count, entries.number("bytes"), entries.text("sha256"))


def _table_file(entries: Entries) -> TableFile:
    return TableFile(entries.file("file"), entries.number("count"), entries.text("sha256"))
