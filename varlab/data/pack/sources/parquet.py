"""Parquet files with encoded images in a column, from Hugging Face or elsewhere, as a source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from os.path import commonpath
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from varlab.config import Config
from varlab.data.faults import BadSampleError
from varlab.data.folders.splits import assign_splits
from varlab.data.folders.tree import Tree
from varlab.data.format.index import SPLITS
from varlab.data.format.labels import UNLABELLED, class_names, names_of, numbering
from varlab.data.format.scan import split_files
from varlab.data.pack.sources.base import Skipped, SourceSample, require_train, stratified_split, val_notes
from varlab.data.pack.sources.file_source import FileSource
from varlab.data.pack.sources.parquet_file import LabelColumn, folder_labels, read_images, read_labels
from varlab.data.pack.sources.source_paths import parquet_paths

__all__ = ["Parquet"]

Entry = tuple[int, int, int]
"""Number of the file, of the row group in it, of the row in that."""


class Parquet(FileSource):
    """The rows of Parquet files in their order, each image as ``Fit`` brings it to size; the key is the number of the row.

    Only the labels are read at first. Images are read one row group at a time, and each process keeps the last one; rows are
    therefore not shuffled, training does that. A row is skipped and named if its image is null or cannot be decoded, its
    label is not a class, or its row group is damaged.

    Args:
        path: a file, a folder that is searched to any depth, or a list of them.
        split: for val and train, patterns of the files' paths with | between them, and for ``skip``, the files to leave out;
            None for the words in the paths, see ``assign_splits``. A single file is for train.
        image: a column of bytes, or of structs with a field ``bytes``. label: a column of whole numbers (of any type) or
            strings, or the key of folders ``label=0/``; None if there are no labels. Null, NaN and -1 are no label.
        classes: their names in label order, or a file with one name a line; None for those in Hugging Face's metadata, or
            else the strings in order, or 0 … the highest number.
        val_fraction: if no file is for val, this share of each class, drawn by ``seed``.

    Raises:
        VarlabError: the path is missing, a file is no Parquet file, or a column is missing or of another type.
    """

    def __init__(
        self,
        *,
        path: str | Sequence[str],
        split: Mapping[str, str | None],
        image: str,
        label: str | None,
        classes: Sequence[str] | str | None,
        size: int | None,
        resample: str,
        val_fraction: float,
        seed: int,
        check: str = "decode",
        most_pixels: int = 1 << 27,
        depth: int | str = "auto",
        whole: bool | None = None,
    ):
        super().__init__(size=size, resample=resample, check=check, most_pixels=most_pixels, depth=depth, whole=whole)
        self._arguments: Config = {"path": path, "split": dict(split), "image": image, "label": label}
        self._arguments.update(size=size, resample=resample, val_fraction=val_fraction, seed=seed)
        self._image, self._labelled = image, label is not None
        self._root, files, self.notes = _find(path, split)
        """Sentences about what was passed over or decided."""
        self._files = [file for name in SPLITS for file in files[name]]
        labels = folder_labels(self._files, label)
        columns = [read_labels(self._root / f, image=image, label=label, folder=labels.get(f)) for f in self._files]
        self._sizes = {(f, group): n for f, c in enumerate(columns) for group, n in enumerate(c.group_sizes)}
        self._first = dict(zip(self._sizes, accumulate(self._sizes.values(), initial=0), strict=False))
        self._group: tuple[tuple[int, int], pa.ChunkedArray | BadSampleError] | None = None
        self.classes, self._label_N, self._reasons = self._labels(columns, class_names(classes))
        train = sum(sum(column.group_sizes) for column in columns[: len(files["train"])])
        self._split = self._split_at(train, val_fraction, seed)
        require_train(self._root, self._files, len(self._split["train"]))
        usable = {name: self._label_N[row_n] for name, row_n in self._split.items()}
        self.notes += val_notes({name: label_n[label_n >= 0] for name, label_n in usable.items()}, self.classes)

    def _labels(
        self, columns: Sequence[LabelColumn], classes: tuple[str, ...] | None
    ) -> tuple[tuple[str, ...], NDArray[np.int64], list[str]]:
        """The classes; the label of each row, or -1 - n for a bad one; and the n-th reason."""
        rows = sum(len(column.value_N) for column in columns)
        missing = sum(int((column.value_N == i).sum()) for column in columns for i in column.missing)
        if self._labelled and missing:
            self.notes.append(f"{missing:,} of {rows:,} rows have no label: null, NaN or -1")
        if not self._labelled or (rows and missing == rows):
            self._labelled = False
            return classes or UNLABELLED, np.zeros(rows, dtype=np.int64), []
        given = classes or next((column.classes for column in columns if column.classes), None)
        names = given or names_of({label for column in columns for label in column.values})
        number, label_N, reasons = numbering(names, missing="null"), [np.zeros(0, dtype=np.int64)], list[str]()
        for column in columns:
            numbers = []
            for label in column.values:
                try:
                    numbers.append(number(label))
                except BadSampleError as bad:
                    reasons.append(f"{bad.kind}: {bad.detail}")
                    numbers.append(-len(reasons))
            label_N.append(np.array(numbers, dtype=np.int64)[column.value_N])
        return names, np.concatenate(label_N), reasons

    def _split_at(self, train: int, fraction: float, seed: int) -> dict[str, NDArray[np.int64]]:
        """The rows of each split, ascending: the first ``train`` and the rest; without a rest, a share of all is for val."""
        total = len(self._label_N)
        if train < total:
            return {"train": np.arange(train), "val": np.arange(train, total)}
        kind_N = np.where(self._label_N < 0, len(self.classes), self._label_N)  # bad rows are split like a class
        chosen = stratified_split(kind_N.tolist(), val_fraction=fraction, seed=seed)
        return {name: np.array(rows, dtype=np.int64) for name, rows in chosen.items()}

    def describe(self) -> Config:
        """Name and arguments."""
        return {"name": "parquet", **self._arguments, **self._reading}

    def entries(self, split: str) -> list[Entry]:
        """The rows, in the order of the files."""
        rows = [(*group, row) for group, size in self._sizes.items() for row in range(size)]
        return [rows[number] for number in self._split[split].tolist()]

    def load(self, split: str, entry: Entry) -> SourceSample | Skipped:
        """Load a row: fast if the previous one was of the same row group."""
        file, group, row = entry
        number = self._first[file, group] + row
        name = f"{self._files[file]} row {number - self._first[file, 0]}"
        label = int(self._label_N[number])
        if label < 0:
            return Skipped(name, self._reasons[-1 - label])
        try:
            image, steps, deep = self._fit(self._encoded(file, group, row))
        except BadSampleError as bad:
            return Skipped(name, f"{bad.kind}: {bad.detail}")
        own = label if self._labelled else None
        return SourceSample(key=f"{number:08d}", label=own, image=image, steps=steps, deep=deep)

    def _encoded(self, file: int, group: int, row: int) -> bytes:
        """The bytes of an image. Raises BadSampleError if there are none."""
        if self._group is None or self._group[0] != (file, group):
            self._group = None  # never two of them in memory
            self._group = (file, group), self._images(file, group)
        images = self._group[1]
        if isinstance(images, BadSampleError):
            raise BadSampleError(images.kind, images.detail)
        content: bytes | None = images[row].as_py()
        if content is None:
            raise BadSampleError("no_image", "null")
        return content

    def _images(self, file: int, group: int) -> pa.ChunkedArray | BadSampleError:
        """The images of a row group, or its fault: the file is not read again for each row."""
        try:
            return read_images(self._root / self._files[file], group=group, image=self._image)
        except BadSampleError as bad:
            return bad


def _find(
    paths: str | Sequence[str], patterns: Mapping[str, str | None]
) -> tuple[Path, dict[str, list[str]], list[str]]:
    """The folder, the files below it by split, and sentences about what was decided."""
    given = parquet_paths(paths)
    if len(given) == 1 and given[0].is_file():
        return given[0].parent, {"train": [given[0].name], "val": []}, []
    if len(given) == 1:
        return given[0], *split_files(given[0], patterns, ending="parquet", key="source.split")
    root = Path(commonpath([path.parent.absolute() for path in given]))
    inside = {path: [""] if path.is_file() else Tree(path).files() for path in given}
    files = [path / file for path, names in inside.items() for file in names if not file or file.endswith(".parquet")]
    names = [str(file.absolute().relative_to(root)) for file in files]
    return root, *assign_splits(names, patterns, where=str(root), key="source.split")
