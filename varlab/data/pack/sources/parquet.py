"""Parquet files with encoded images in a column, Hugging Face's or anyone's, as a source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varlab.config import Config
from varlab.data.faults import BadSampleError
from varlab.data.format.index import SPLITS
from varlab.data.format.labels import UNLABELLED, class_names, names_of, numbering
from varlab.data.format.scan import split_files
from varlab.data.image.resize import Fit
from varlab.data.pack.sources.base import Skipped, SourceSample, stratified_split
from varlab.data.pack.sources.parquet_columns import Survey, images, survey
from varlab.errors import VarlabError

__all__ = ["Parquet"]

Entry = tuple[int, int, int]
"""Number of the file, of the row group in it, of the row in that."""


class Parquet:
    """The rows of Parquet files in their order, each image as ``Fit`` has it; the key is the row's number among all.

    Only labels are read ahead. The image column comes in one row group at a time, and each process keeps the last: so rows
    are not shuffled, which is training's business. A null, an image that cannot be decoded, a label that is no class, or a
    damaged row group is skipped and named.

    Args:
        path: a file, or a folder searched to any depth.
        split: for val and train, patterns of files' paths with | between them, and for ``skip``, what is left out; the first
            that matches takes a file. Of a single file everything is for train.
        image: the column; bytes, or a struct that has them in ``bytes``. label: the column, of integers or strings; None
            where there are no labels.
        classes: their names in label order, or a file with one a line; None for those of Hugging Face's metadata, or the
            strings in order, or 0 … the highest number.
        val_fraction: where nothing is for val: this share of each class, drawn by ``seed``.

    Raises:
        VarlabError: no such file or folder, one that is no Parquet, or a column that is missing or of another type.
    """

    def __init__(
        self,
        *,
        path: str,
        split: Mapping[str, str | None],
        image: str,
        label: str | None,
        classes: Sequence[str] | str | None,
        size: int | None,
        resample: str,
        val_fraction: float,
        seed: int,
        check: str = "decode",
    ):
        self._fit = Fit(size=size, resample=resample, check=check)
        self._arguments: Config = {"path": path, "split": dict(split), "image": image, "label": label}
        self._arguments.update(size=size, resample=resample, val_fraction=val_fraction, seed=seed)
        self.image_size = self._fit.image_size
        self._image, self._labelled = image, label is not None
        self._root, files = _find(Path(path).expanduser(), {s: p for s, p in split.items() if p})
        self._files = [file for name in SPLITS for file in files[name]]
        surveys = [survey(self._root / file, image=image, label=label) for file in self._files]
        self._first = _groups(surveys)
        self._kept: tuple[tuple[int, int], Any] | None = None
        self.classes, self._label_N, self._reasons = self._labels(surveys, class_names(classes))
        train = sum(sum(of.rows) for of in surveys[: len(files["train"])])
        self._split = self._split_at(train, val_fraction, seed)

    def _labels(
        self, surveys: Sequence[Survey], classes: tuple[str, ...] | None
    ) -> tuple[tuple[str, ...], NDArray[np.int64], list[str]]:
        """The classes; of each row its label, or -1 - n; and the n-th reason why there is none."""
        label_N, reasons = [np.zeros(0, dtype=np.int64)], list[str]()
        if not self._labelled:
            return classes or UNLABELLED, np.zeros(sum(len(of.which_n) for of in surveys), dtype=np.int64), reasons
        told = next((of.classes for of in surveys if of.classes), None)
        names = classes or told or names_of({label for of in surveys for label in of.labels})
        numbered = numbering(names, missing="null")
        for of in surveys:
            numbers = []
            for label in of.labels:
                try:
                    numbers.append(numbered(label))
                except BadSampleError as bad:
                    reasons.append(f"{bad.kind}: {bad.detail}")
                    numbers.append(-len(reasons))
            label_N.append(np.array(numbers, dtype=np.int64)[of.which_n])
        return names, np.concatenate(label_N), reasons

    def _split_at(self, train: int, fraction: float, seed: int) -> dict[str, NDArray[np.int64]]:
        """The rows of each split, ascending: the first so many for train, the others, or a share of these, for val."""
        total = len(self._label_N)
        if train < total:
            return {"train": np.arange(train), "val": np.arange(train, total)}
        kind_N = np.where(self._label_N < 0, len(self.classes), self._label_N)  # the bad are shared out like a class
        chosen = stratified_split(kind_N.tolist(), val_fraction=fraction, seed=seed)
        return {name: np.array(rows, dtype=np.int64) for name, rows in chosen.items()}

    def describe(self) -> Config:
        """Name and arguments."""
        return {"name": "parquet", **self._arguments}

    def entries(self, split: str) -> list[Entry]:
        """The rows, in the order of the files."""
        number_n, groups = self._split[split], list(self._first)
        first_G = np.array(list(self._first.values()), dtype=np.int64)
        group_n = np.searchsorted(first_G, number_n, side="right") - 1
        row_n = number_n - first_G[group_n]
        return [(*groups[group], row) for group, row in zip(group_n.tolist(), row_n.tolist(), strict=True)]

    def load(self, split: str, entry: Entry) -> SourceSample | Skipped:
        """Quick where the entry before was of the same row group."""
        file, group, row = entry
        number = self._first[file, group] + row
        name = f"{self._files[file]} row {number - self._first[file, 0]}"
        label = int(self._label_N[number])
        if label < 0:
            return Skipped(name, self._reasons[-1 - label])
        try:
            image = self._fit(self._encoded(file, group, row))
        except BadSampleError as bad:
            return Skipped(name, f"{bad.kind}: {bad.detail}")
        return SourceSample(key=f"{number:08d}", label=label if self._labelled else None, image=image)

    def _encoded(self, file: int, group: int, row: int) -> bytes:
        """The bytes of an image. BadSampleError where there are none."""
        if self._kept is None or self._kept[0] != (file, group):
            self._kept = None  # never two of them in memory
            self._kept = (file, group), self._column(file, group)
        column = self._kept[1]
        if isinstance(column, BadSampleError):
            raise BadSampleError(column.kind, column.detail)
        content: bytes | None = column[row].as_py()
        if content is None:
            raise BadSampleError("no_image", "null")
        return content

    def _column(self, file: int, group: int) -> Any:
        """The images of a row group, or what is wrong with it: no row of it is to try again."""
        try:
            return images(self._root / self._files[file], group=group, image=self._image)
        except BadSampleError as bad:
            return bad


def _find(path: Path, patterns: Mapping[str, str]) -> tuple[Path, dict[str, list[str]]]:
    """The folder, and the files below it by split."""
    if path.is_file():
        return path.parent, {"train": [path.name], "val": []}
    if not path.is_dir():
        raise VarlabError(f"There is no Parquet file or folder {path}: set path to one.")
    return path, {**{name: [] for name in SPLITS}, **split_files(path, patterns, ending="parquet")}


def _groups(surveys: Sequence[Survey]) -> dict[tuple[int, int], int]:
    """Of every row group, as (number of the file, number in it), the number of its first row among all."""
    groups = [(file, group) for file, of in enumerate(surveys) for group in range(len(of.rows))]
    rows = [n for of in surveys for n in of.rows]
    return dict(zip(groups, accumulate(rows, initial=0), strict=False))
