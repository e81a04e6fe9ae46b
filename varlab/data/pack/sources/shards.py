"""WebDataset tars that are there already as a source: packed anew at another size, in other shards, or in another split."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from xxhash import xxh3_64_intdigest

from varlab.config import Config
from varlab.data.faults import BadSampleError, describe_faults
from varlab.data.format.index import FILE, SPLITS, read_index
from varlab.data.format.labels import class_names
from varlab.data.format.scan import number_labels, split_files, split_of
from varlab.data.format.table import make_table
from varlab.data.format.tar import scan_tar
from varlab.data.image.resize import Fit
from varlab.data.pack.sources.base import Skipped, SourceSample, stratified_split
from varlab.errors import VarlabError

__all__ = ["Tars"]

PATTERNS = {"val": "*val*|*test*", "train": "*"}
"""Which shards are for what where neither the user nor an index says so."""

Entry = tuple[int, int, int, int] | Skipped
"""Number in the split, which of the old tables, row in it, hash of the image's bytes; or what is wrong with a shard."""


@dataclass(frozen=True)
class _Old:
    """The old shards of a split: their paths below the folder, and the table of their samples."""

    split: str
    files: tuple[str, ...]
    table: NDArray[Any]


class Tars:
    """The samples of the tars below a folder in their old order, each image as ``Fit`` has it.

    A folder with an ``index.json`` is taken as that says: samples, classes, split, size. Any other is scanned, hashing every
    image, in one process: run ``varlab index`` on large sets first, which takes all of them. What is wrong with a shard or
    a sample is skipped and named. Keys stay where they are unique and fit; else they are numbered. Second images and boxes
    are left behind: pack with a condition to have them.

    Args:
        label: where labels are told, as for ``varlab index``. Other than ``auto`` scans in spite of an index.
        classes: their names in label order, or a file with one a line; None for those of the index, or those found.
        split: for train and val, patterns of shards' paths with | between them; None as the index says, or ``PATTERNS``.
        val_fraction: where nothing is for val: this share of each class, drawn by ``seed``.

    Raises:
        VarlabError: no such folder, no sample in it, an index that is damaged or not of this version, or other classes.
    """

    def __init__(
        self,
        *,
        path: str,
        size: int | None,
        resample: str,
        label: str,
        classes: Sequence[str] | str | None,
        split: Mapping[str, str | None],
        val_fraction: float,
        seed: int,
        check: str = "decode",
    ):
        self._root = Path(path).expanduser()
        if not self._root.is_dir():
            raise VarlabError(f"There is no folder of shards {self._root}: set path to the one that they lie in.")
        self._fit = Fit(size=size, resample=resample, check=check)
        self._arguments: Config = {"path": path, "size": size, "resample": resample, "label": label}
        self._arguments.update(split=dict(split), val_fraction=val_fraction, seed=seed)  # the index tells the classes
        self.image_size = self._fit.image_size
        self._faults: dict[str, list[Skipped]] = {name: [] for name in SPLITS}
        patterns = {name: split.get(name) or PATTERNS[name] for name in PATTERNS}
        self.classes: tuple[str, ...]
        if label == "auto" and (self._root / FILE).is_file():
            self._old, self.classes = self._indexed(class_names(classes))
            where = self._split_by(patterns if any(split.values()) else None)
        else:
            self._old, self.classes = self._scanned(patterns, label, class_names(classes))
            where = self._split_by(None)
        self._where = where if len(where["val"]) else self._apart(where["train"], val_fraction, seed)
        self._keep_keys = {name: _fit_as_keys(self._column("key", of)) for name, of in self._where.items()}

    def _indexed(self, classes: tuple[str, ...] | None) -> tuple[list[_Old], tuple[str, ...]]:
        """The old shards by split, as the index says, and the classes."""
        index = read_index(self._root)
        if classes is not None and len(classes) != len(index.classes):
            raise VarlabError(
                f"{self._root} has {len(index.classes)} classes, not {len(classes)}: name them all, or none."
            )
        self.image_size = self.image_size or index.image_size  # what is kept has the size that it had
        splits = [name for name in SPLITS if name in index.tables and index.tables[name].count]
        old = [_Old(name, tuple(s.file for s in index.splits[name]), index.table(name)) for name in splits]
        return old, classes or index.classes

    def _scanned(
        self, patterns: Mapping[str, str], label: str, classes: tuple[str, ...] | None
    ) -> tuple[list[_Old], tuple[str, ...]]:
        """The old shards by split, as they are, and the classes."""
        files = split_files(self._root, patterns)
        scans = {split: [scan_tar(self._root, file, label=label) for file in of] for split, of in files.items()}
        every = [scan for of in scans.values() for scan in of]
        names = number_labels(every, label=label, classes=classes)
        if not any(scan.records for scan in every):
            faults = describe_faults([fault for scan in every for fault in scan.faults])
            raise VarlabError(f"{self._root} holds no sample that can be read: {faults}.")
        old = []
        for split in SPLITS:
            table = make_table([scan.records for scan in scans[split]], conditions=False, boxes=False)
            old.append(_Old(split, tuple(files[split]), table))
            self._faults[split] = [
                _skipped(scan.file, f.key, f.kind, f.detail) for scan in scans[split] for f in scan.faults
            ]
        return old, names

    def _split_by(self, patterns: Mapping[str, str] | None) -> dict[str, NDArray[np.int64]]:
        """Of each split where_n2, its samples' tables and rows, ascending: by patterns, or as the old shards are split."""
        found: dict[str, list[NDArray[np.int64]]] = {name: [np.empty((0, 2), np.int64)] for name in SPLITS}
        for k, old in enumerate(self._old):
            names = [split_of(self._root, file, patterns) if patterns else old.split for file in old.files]
            split_n = np.array(names, dtype="U5")[old.table["shard"]]
            for name in SPLITS:
                row_n = np.flatnonzero(split_n == name)
                found[name].append(np.stack([np.full_like(row_n, k), row_n], axis=1))
        return {name: np.concatenate(of) for name, of in found.items()}

    def _apart(self, where_n2: NDArray[np.int64], fraction: float, seed: int) -> dict[str, NDArray[np.int64]]:
        """A share of each class for val, the rest for train."""
        labels = self._column("label", where_n2).tolist()
        chosen = stratified_split(labels, val_fraction=fraction, seed=seed)
        return {name: where_n2[chosen[name]] for name in SPLITS}

    def _column(self, field: str, where_n2: NDArray[np.int64]) -> NDArray[Any]:
        tables = [old.table[field] for old in self._old]
        return np.concatenate([table[where_n2[where_n2[:, 0] == k, 1]] for k, table in enumerate(tables)])

    def describe(self) -> Config:
        """Name and arguments."""
        return {"name": "tars", **self._arguments}

    def entries(self, split: str) -> list[Entry]:
        """What is wrong with the old shards, then their samples. With the hashes a changed image is another entry."""
        where_n2 = self._where[split]
        check_n = self._column("check", where_n2)
        rows = zip(where_n2[:, 0].tolist(), where_n2[:, 1].tolist(), check_n.tolist(), strict=True)
        return [*self._faults[split], *((i, *row) for i, row in enumerate(rows))]

    def load(self, split: str, entry: Entry) -> SourceSample | Skipped:
        """The image's bytes are compared with their hash."""
        if isinstance(entry, Skipped):
            return entry
        number, k, i, check = entry
        old = self._old[k]
        row = old.table[i]
        file, key = old.files[row["shard"]], row["key"].decode()
        try:
            image = self._fit(_bytes(self._root / file, int(row["offset"]), int(row["size"]), check))
        except BadSampleError as bad:
            return _skipped(file, key, bad.kind, str(bad))
        if not self._keep_keys[split]:
            key = f"{number:08d}-{re.sub('[^A-Za-z0-9_-]', '_', key)[:60]}"
        return SourceSample(key=key, label=int(row["label"]), image=image)


def _bytes(path: Path, offset: int, size: int, check: int) -> bytes:
    """Part of a shard. BadSampleError where it is not what was found before."""
    try:
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read(size)
    except FileNotFoundError as e:
        raise BadSampleError("missing", "no such file") from e
    if len(content) < size:
        raise BadSampleError("cut", f"the file ends before byte {offset + size}")
    if xxh3_64_intdigest(content) != check:
        raise BadSampleError("changed", "other bytes than were indexed")
    return content


def _skipped(file: str, key: str, kind: str, detail: str) -> Skipped:
    return Skipped(f"{file} {key}".strip(), f"{kind}: {detail}")


def _fit_as_keys(key_n: NDArray[Any]) -> bool:
    """Whether these can be a split's keys as they are: see ``SourceSample``."""
    if not len(key_n) or key_n.dtype.itemsize > 90 or (key_n == b"").any() or len(np.unique(key_n)) < len(key_n):
        return False
    letters = np.ascontiguousarray(key_n).view(np.uint8)
    return bool((letters < 128).all() and (letters != ord(".")).all())
