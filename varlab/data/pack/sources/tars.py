"""Existing WebDataset tars as a source: to pack them again at another size, in other shards, or in another split."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from varlab.config import Config
from varlab.data.faults import BadSampleError, describe_faults
from varlab.data.folders.splits import assign_splits
from varlab.data.format.index import FILE, SPLITS, read_index
from varlab.data.format.labels import class_names
from varlab.data.format.scan import number_labels, split_files
from varlab.data.format.table import make_table
from varlab.data.format.tar import log_notes, scan_tar
from varlab.data.pack.sources.base import Skipped, SourceSample, require_train, stratified_split, val_notes
from varlab.data.pack.sources.file_source import FileSource
from varlab.data.pack.sources.source_paths import shard_folder
from varlab.data.storage.local_folder import LocalFolder, Storage, StoredFile
from varlab.data.storage.open_files import OpenFiles
from varlab.errors import VarlabError

__all__ = ["Tars"]

_COLUMNS = ["shard", "offset", "size", "check", "label", "key"]

Entry = tuple[int, int, int] | Skipped
"""Number in the split, row of the table, hash of the image's bytes; or a fault of a shard."""

Tables = dict[str, tuple[list[str], NDArray[np.void]]]
"""Of each old split: the shards' paths below the folder, and the table of their samples."""


class Tars(FileSource):
    """The samples of the tars below a folder in their order, each image as ``Fit`` brings it to size.

    The samples, classes, splits and size come from ``index.json`` if the folder has one. Otherwise one process scans the
    tars and hashes every image: run ``varlab index`` first on large sets, which uses all processes. Faults of shards and of
    samples are skipped and named. Keys are kept if they are unique and valid, otherwise numbered. Second images and boxes
    are dropped: pack with a condition to make them again.

    Args:
        label: where the labels are, see ``read_label``. Any other value than ``auto`` scans the tars in spite of an index.
        classes: their names in label order, or a file with one name a line; None for those of the index, or of the labels.
        split: for train, val and ``skip``, patterns of the shards' paths with | between them; None for the index's split, or
            for the words in the paths, see ``assign_splits``.
        val_fraction: if no shard is for val, this share of each class, drawn by ``seed``.

    Raises:
        VarlabError: the folder is missing, has no sample, or has an index that is damaged, of another version or with
            another number of classes.
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
        most_pixels: int = 1 << 27,
        depth: int | str = "auto",
        whole: bool | None = None,
    ):
        super().__init__(size=size, resample=resample, check=check, most_pixels=most_pixels, depth=depth, whole=whole)
        self._root = shard_folder(path)
        self._arguments: Config = {"path": path, "size": size, "resample": resample, "label": label}
        given = {name: split.get(name) for name in ("val", "train", "skip") if name != "skip" or split.get(name)}
        self._arguments.update(split=given, val_fraction=val_fraction, seed=seed)  # classes are in the index
        self._faults: dict[str, list[Skipped]] = {name: [] for name in SPLITS}
        self.notes: list[str] = []
        """Sentences about what was passed over or decided."""
        self._storage: Storage = LocalFolder(self._root)
        self.classes: tuple[str, ...]
        if label == "auto" and (self._root / FILE).is_file():
            tables, self.classes = self._indexed(class_names(classes))
        else:
            tables, self.classes = self._scanned(split, label, class_names(classes))
        self._table, self._names, split_F = _joined(tables)
        self._files = OpenFiles(self._storage, [StoredFile(name, 0) for name in self._names])
        if any(split.values()):
            splits, self.notes = assign_splits(self._names, split, where=str(self._root), key="source.split")
            taken = {file: name for name, files in splits.items() for file in files}
            split_F = [taken.get(name, "skip") for name in self._names]
        self._rows = self._split(split_F, val_fraction, seed)
        require_train(self._root, self._names, len(self._rows["train"]))
        self.notes += val_notes({name: self._table["label"][row_n] for name, row_n in self._rows.items()}, self.classes)
        self._keep_keys = {name: _are_keys(self._table["key"][row_n]) for name, row_n in self._rows.items()}

    def _indexed(self, classes: tuple[str, ...] | None) -> tuple[Tables, tuple[str, ...]]:
        """The tables of the index, and the classes."""
        index = read_index(self._root)
        self._storage = index.shard_storage
        if classes is not None and len(classes) != len(index.classes):
            raise VarlabError(
                f"{self._root} has {len(index.classes)} classes, not {len(classes)}: name them all, or none (a name with a "
                "comma needs quotes in the list, or a file with one name a line)."
            )
        if "whole" not in self._reading:
            self.image_size = self.image_size or index.image_size  # images that are kept keep their size
        splits = [name for name in SPLITS if name in index.tables and index.tables[name].count]
        return {
            s: ([shard.file for shard in index.splits[s]], index.table(s)) for s in splits
        }, classes or index.classes

    def _scanned(
        self, patterns: Mapping[str, str | None], label: str, classes: tuple[str, ...] | None
    ) -> tuple[Tables, tuple[str, ...]]:
        """The tables of a scan, and the classes."""
        files, self.notes = split_files(self._root, patterns, key="source.split")
        scans = {split: [scan_tar(self._root, file, label=label) for file in files[split]] for split in SPLITS}
        every = [scan for of in scans.values() for scan in of]
        log_notes(every)
        names = number_labels(every, label=label, classes=classes)
        if not any(scan.records for scan in every):
            faults = describe_faults([fault for scan in every for fault in scan.faults])
            raise VarlabError(f"{self._root} holds no sample that can be read: {faults}.")
        for split, of in scans.items():
            self._faults[split] = [_skipped(scan.file, f.key, f.kind, f.detail) for scan in of for f in scan.faults]
        records = {split: [scan.records for scan in of] for split, of in scans.items()}
        return {s: (files[s], make_table(of, conditions=False, boxes=False)) for s, of in records.items()}, names

    def _split(self, split_F: Sequence[str], fraction: float, seed: int) -> dict[str, NDArray[np.int64]]:
        """The rows of each split, ascending, from the split of each file; without val rows, it gets a share of train."""
        split_N = np.array(split_F)[self._table["shard"]]
        rows = {name: np.flatnonzero(split_N == name) for name in SPLITS}
        if not len(rows["val"]):
            labels = self._table["label"][rows["train"]].tolist()
            chosen = stratified_split(labels, val_fraction=fraction, seed=seed)
            rows = {name: rows["train"][chosen[name]] for name in SPLITS}
        return rows

    def describe(self) -> Config:
        """Name and arguments."""
        return {"name": "tars", **self._arguments, **self._reading}

    def entries(self, split: str) -> list[Entry]:
        """The faults of the shards, then the samples. Because of the hash, a changed image is another entry."""
        rows = self._rows[split]
        pairs = zip(rows.tolist(), self._table["check"][rows].tolist(), strict=True)
        return [*self._faults[split], *((number, row, check) for number, (row, check) in enumerate(pairs))]

    def load(self, split: str, entry: Entry) -> SourceSample | Skipped:
        """Load a sample; the image's bytes are compared with their hash."""
        if isinstance(entry, Skipped):
            return entry
        number, i, check = entry
        row = self._table[i]
        key = row["key"].decode(errors="backslashreplace")
        try:
            encoded = self._files.read(int(row["shard"]), int(row["offset"]), int(row["size"]), check)
            image, steps, deep = self._fit(encoded)
        except BadSampleError as bad:
            return _skipped(self._names[row["shard"]], key, bad.kind, bad.detail)
        if not self._keep_keys[split]:
            key = f"{number:08d}-{re.sub('[^A-Za-z0-9_-]', '_', key)[:60]}"
        return SourceSample(key=key, label=int(row["label"]), image=image, steps=steps, deep=deep)


def _joined(tables: Tables) -> tuple[NDArray[np.void], list[str], list[str]]:
    """All rows as one table, the path of each file, and the split of each file."""
    parts, names, split_F = [], list[str](), list[str]()
    for split, (files, table) in tables.items():
        part = table[_COLUMNS].copy()
        part["shard"] += len(names)
        parts.append(part)
        names += files
        split_F += [split] * len(files)
    return np.concatenate(parts), names, split_F


def _skipped(file: str, key: str, kind: str, detail: str) -> Skipped:
    return Skipped(f"{file} {key}".strip(), f"{kind}: {detail}")


def _are_keys(key_n: NDArray[np.bytes_]) -> bool:
    """Whether these are valid keys of a split, see ``SourceSample``."""
    if not len(key_n) or key_n.dtype.itemsize > 90 or (key_n == b"").any() or len(np.unique(key_n)) < len(key_n):
        return False
    letters = np.ascontiguousarray(key_n).view(np.uint8)
    return bool((letters < 128).all() and (letters != ord(".")).all())
