"""Write the index of a folder of shards: a table for each split, and ``index.json``."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from varlab.config import Config
from varlab.data.format.index import DIGEST, FILE, SHARDS, Index, Shard, TableFile
from varlab.data.format.table import SampleRecord, make_table, table_bytes
from varlab.data.image.depth import Depths
from varlab.data.storage.local_folder import LocalFolder, Storage
from varlab.files import atomic_write
from varlab.json_file import write_json

__all__ = ["index_shards", "write_index"]


def index_shards(
    folder: Path,
    splits: Mapping[str, Sequence[tuple[Shard, Sequence[SampleRecord]]]],
    *,
    source: Config,
    classes: Sequence[str],
    sizes: Collection[tuple[int, int]],
    faults: Mapping[str, int],
    conditions: str | None,
    boxes: bool,
    depth: Depths,
    steps: Counter[str],
    place: Path | None = None,
) -> Index:
    """Write the index of shards, each with the records of its samples.

    sizes: the (H, W) of all images. place: the folder of the index, None if that is beside the shards. The rest as in
    ``Index``.
    """
    index = Index(
        storage=LocalFolder(place or folder),
        shards=None if place is None else LocalFolder(folder),
        source=source,
        classes=tuple(classes),
        image_size=next(iter(sizes)) if len(sizes) == 1 else None,
        splits={split: tuple(shard for shard, _ in of) for split, of in splits.items()},
        tables={},
        faults=faults,
        conditions=conditions,
        boxes=boxes,
        depth=depth,
        steps=dict(steps.most_common()),
    )
    records = {split: [records for _, records in of] for split, of in splits.items()}
    tables = {s: make_table(of, conditions=conditions is not None, boxes=boxes) for s, of in records.items() if any(of)}
    return write_index(index, tables)


def write_index(index: Index, tables: Mapping[str, NDArray[np.void]]) -> Index:
    """Write the tables and then ``index.json`` into the folder, each file atomically; return the index with its tables.

    Raises:
        VarlabError: the disk refused (full, read-only).
    """
    assert isinstance(index.storage, LocalFolder)
    folder, files = index.storage.path, dict[str, TableFile]()
    for split, table in tables.items():
        content, name = table_bytes(table), f"{split}.samples.npy"
        with atomic_write(folder / name) as file:
            file.write(content)
        files[split] = TableFile(name, len(table), hashlib.sha256(content).hexdigest())
    index = replace(index, tables=files)
    entries: Config = {"steps": index.steps} if index.steps else {}
    if index.shards is not None:
        entries[SHARDS] = _path_from(folder, index.shards)
    write_json(folder / FILE, {**index.content, "source": index.source, **entries, DIGEST: index.hash})
    return index


def _path_from(folder: Path, shards: Storage) -> str:
    """The path of the shards, relative to the index if the two have a folder in common, so that they can be moved with it."""
    here, there = os.path.realpath(folder), os.path.realpath(shards.name)
    return there if os.path.commonpath([here, there]) == "/" else os.path.relpath(there, here)
