"""``index.json``: what a folder of WebDataset shards says of itself.

The shards are plain tars that webdataset reads without us; the index adds what a tar cannot tell: how many samples and
bytes there should be (so that a cut shard is noticed), the classes' names, the image size, and in a table for each split
(``train.samples.npy``) where every sample lies and what its bytes hash to.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varlab.config import Config
from varlab.data.format.storage import Folder, LocalFolder
from varlab.data.format.table import to_bytes
from varlab.errors import VarlabError
from varlab.files import atomic_write, write_json
from varlab.types import DataInfo

__all__ = ["FILE", "SPLITS", "VERSION", "Index", "Shard", "Table", "read_index", "table_file", "write_index"]

FILE = "index.json"
VERSION = 2
SPLITS = ("train", "val")


@dataclass(frozen=True)
class Shard:
    """One tar. ``count`` samples of its split, ``bytes`` long, ``sha256`` of the whole file."""

    file: str
    count: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Table:
    """The table of a split: its file, ``count`` rows, ``sha256`` of the file."""

    file: str
    count: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """A shard set. ``source`` tells how it was made; ``image_size`` is (H, W) in pixels, None where images differ in size.

    tables: of each split. faults: how many samples (or shards) of each kind were left out as the index was made.
    conditions: what the second image of each sample is, None where there is none. boxes: whether each sample says where in
    its picture it lies. Neither is written where it is absent: shards without conditions are what they always were.
    """

    folder: Folder
    source: Config
    classes: tuple[str, ...]
    image_size: tuple[int, int] | None
    splits: Mapping[str, tuple[Shard, ...]]
    tables: Mapping[str, Table]
    faults: Mapping[str, int] = field(default_factory=dict)
    conditions: str | None = None
    boxes: bool = False

    @property
    def path(self) -> str:
        """Where the set lies, as it was asked for."""
        return self.folder.name

    @property
    def content(self) -> Config:
        """All that decides the samples, in JSON types: neither where the set lies nor where it came from."""
        return {
            "version": VERSION,
            "classes": list(self.classes),
            "image_size": None if self.image_size is None else list(self.image_size),
            "splits": {split: [asdict(s) for s in shards] for split, shards in self.splits.items()},
            "tables": {split: asdict(table) for split, table in self.tables.items()},
            **({"faults": dict(self.faults)} if self.faults else {}),
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
        """What other rooms are told; an image size of (0, 0) is for the reader of the images to say."""
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

    def table(self, split: str) -> NDArray[Any]:
        """The table of a split, mapped into memory.

        Raises:
            VarlabError: no samples in that split, or a table that is missing or not the index's.
        """
        told = self.tables.get(split)
        if told is None or not told.count:
            raise VarlabError(f"The shard set {self.path} holds no {split} images: pack one that does.")
        remedy = f"run `varlab index {self.path}` again"
        try:
            path = self.folder.local(told.file)
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != told.sha256:
                    raise VarlabError(f"{self.path}/{told.file} is not the one that its {FILE} tells of: {remedy}.")
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as e:
            raise VarlabError(f"{self.path}/{told.file} cannot be read ({e}): {remedy}.") from e


def table_file(split: str) -> str:
    """The name of a split's table."""
    return f"{split}.samples.npy"


def read_index(folder: str | Path | Folder) -> Index:
    """The index of the shard set in a folder.

    Raises:
        VarlabError: no such folder, no shard set in it, or an index that is not of this version.
    """
    if isinstance(folder, str | Path):
        folder = LocalFolder(Path(folder))
    if isinstance(folder, LocalFolder):
        _check_folder(folder.path)
    try:
        text = folder.local(FILE).read_text()
    except OSError as e:
        raise VarlabError(f"{folder.name}/{FILE} cannot be read ({e}): correct data.path.") from e
    index = _parse(folder, text)
    if not any(table.count for table in index.tables.values()):
        raise VarlabError(f"The shard set {folder.name} holds no images: pack it again from a source that has some.")
    return index


def _check_folder(path: Path) -> None:
    if not path.is_dir():
        raise VarlabError(f"There is no shard folder {path}: pack one with `varlab pack` or correct data.path.")
    if not any(path.iterdir()):
        raise VarlabError(f"The shard folder {path} is empty: pack into it with `varlab pack` or correct data.path.")
    if not (path / FILE).is_file():
        raise VarlabError(
            f"{path} has no {FILE}: run `varlab pack` again to finish its packing, or `varlab index {path}` for shards "
            "that others wrote."
        )


def _parse(folder: Folder, text: str) -> Index:
    name = f"{folder.name}/{FILE}"
    try:
        raw = json.loads(text)
        if raw["version"] != VERSION:
            raise VarlabError(f"{name} has version {raw['version']}, not {VERSION}: run `varlab index {folder.name}`.")
        size = raw["image_size"]
        return Index(
            folder=folder,
            source=dict(raw["source"]),
            classes=tuple(raw["classes"]),
            image_size=None if size is None else (int(size[0]), int(size[1])),
            splits={split: tuple(Shard(**s) for s in shards) for split, shards in raw["splits"].items()},
            tables={split: Table(**table) for split, table in raw["tables"].items()},
            faults=dict(raw.get("faults", {})),
            conditions=raw.get("conditions"),
            boxes=bool(raw.get("boxes", False)),
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as e:
        raise VarlabError(
            f"{name} is damaged ({type(e).__name__}: {e}): run `varlab pack` or `varlab index` again."
        ) from e


def write_index(index: Index, tables: Mapping[str, NDArray[Any]]) -> Index:
    """Write the tables and ``index.json`` into the folder, each whole or not at all; the index last. The index with its
    tables named is returned.

    Raises:
        VarlabError: they could not be written (a full disk, for one).
    """
    assert isinstance(index.folder, LocalFolder)
    folder, told = index.folder.path, dict[str, Table]()
    for split, table in tables.items():
        content = to_bytes(table)
        with atomic_write(folder / table_file(split)) as file:
            file.write(content)
        told[split] = Table(table_file(split), len(table), hashlib.sha256(content).hexdigest())
    index = replace(index, tables=told)
    write_json(folder / FILE, {**index.content, "source": index.source})
    return index
