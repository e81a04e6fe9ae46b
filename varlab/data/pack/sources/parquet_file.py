"""Read one Parquet file: all labels at once, images one row group at a time."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import compute, parquet, types

from varlab.data.faults import BadSampleError
from varlab.data.folders.class_names import is_number
from varlab.data.format.labels import Label, as_label
from varlab.errors import VarlabError

__all__ = ["LabelColumn", "folder_labels", "read_images", "read_labels"]

_NO_VALUE = "__HIVE_DEFAULT_PARTITION__"  # Hive's folder of rows without a value
_FEATURES = b"huggingface"  # the metadata key under which Hugging Face's datasets store their features, in JSON


@dataclass(frozen=True)
class LabelColumn:
    """The rows of a file without their images.

    group_sizes: rows of each row group. values: the different labels, in order of their first row. value_N: for each row,
    the index of its label in them. classes: the class names, if the file has them.
    """

    group_sizes: tuple[int, ...]
    values: list[Label]
    value_N: NDArray[np.int64]
    classes: tuple[str, ...] | None

    @property
    def missing(self) -> list[int]:
        """The indices of None in ``values``: null, NaN and -1."""
        return [i for i, value in enumerate(self.values) if value is None]


def folder_labels(files: Sequence[str], label: str | None) -> dict[str, Label]:
    """The label of each file that lies in a folder ``label=VALUE`` (Hive's partitions): numbers if all of them are."""
    prefix = f"{label}="
    folders = {file: part for file in files for part in file.split("/")[:-1] if part.startswith(prefix)}
    values = {file: unquote(part.removeprefix(prefix)) for file, part in folders.items()}
    named = {file: value for file, value in values.items() if value != _NO_VALUE}
    numbers = all(map(is_number, named.values()))
    return {file: (as_label(int(v) if numbers else v) if file in named else None) for file, v in values.items()}


def read_labels(path: Path, *, image: str, label: str | None, folder: Label = None) -> LabelColumn:
    """Read everything but the images.

    image, label: names of columns; without ``label``, each row's label is None. folder: the label that the file's folder
    gives to all rows, if there is no column.

    Raises:
        VarlabError: it is no Parquet file, or a column is missing or of another type.
    """
    try:
        with parquet.ParquetFile(path) as file:
            schema, groups = file.schema_arrow, range(file.metadata.num_row_groups)
            sizes = tuple(file.metadata.row_group(group).num_rows for group in groups)
            _check(path, schema, image, _holds_images, "the bytes of images: set source.image", "")
            if label is None:
                return LabelColumn(sizes, [None], np.zeros(sum(sizes), dtype=np.int64), None)
            if schema.get_field_index(label) < 0 and any(part.startswith(f"{label}=") for part in path.parts):
                return LabelColumn(sizes, [folder], np.zeros(sum(sizes), dtype=np.int64), None)
            remedy = "numbers or names of classes: set source.label"
            _check(path, schema, label, _holds_labels, remedy, ", or source.label=null")
            values, value_N = _distinct(file.read(columns=[label], use_threads=False).column(0))
            labels = [_label(path, label, value) for value in values]
            return LabelColumn(sizes, labels, value_N, _class_names(schema.metadata, label))
    except (pa.ArrowException, OSError) as e:
        raise VarlabError(f"{path} cannot be read as Parquet ({_reason(e)}): fetch it again, or leave it out.") from e


def read_images(path: Path, *, group: int, image: str) -> pa.ChunkedArray:
    """Read the image column of a row group: encoded bytes or nulls.

    Raises:
        BadSampleError: damaged. OSError: the file or its disk is gone.
    """
    try:
        with parquet.ParquetFile(path) as file:
            nested = types.is_struct(file.schema_arrow.field(image).type)
            name = f"{image}.bytes" if nested else image
            column = file.read_row_group(group, columns=[name], use_threads=False).column(0)
            return compute.struct_field(column, "bytes") if nested else column
    except (pa.ArrowException, OSError) as e:
        if getattr(e, "errno", None):  # Arrow raises OSError for damaged content too, without a number
            raise
        raise BadSampleError("damaged", f"row group {group} cannot be read ({_reason(e)})") from e


def _check(
    path: Path, schema: pa.Schema, name: str, fits: Callable[[pa.DataType], bool], remedy: str, otherwise: str
) -> None:
    """Raises VarlabError if a column is missing, or of a type that does not fit."""
    if schema.get_field_index(name) < 0:
        remedy = remedy.rpartition(": ")[2] + otherwise
        raise VarlabError(f"{path} has no column {name!r}, but {', '.join(schema.names)}: {remedy}.")
    kind = schema.field(name).type
    if not fits(kind):
        raise VarlabError(f"{path} has {kind} in column {name!r}, not {remedy}.")


def _holds_images(kind: pa.DataType) -> bool:
    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_images(kind.field("bytes").type)
    plain = types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)
    return bool(plain or types.is_fixed_size_binary(kind) or types.is_null(kind))


def _holds_labels(kind: pa.DataType) -> bool:
    if types.is_dictionary(kind):
        return _holds_labels(kind.value_type)
    texts = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    numbers = types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind) or types.is_boolean(kind)
    return bool(texts or numbers or types.is_null(kind))


def _label(path: Path, column: str, value: object) -> Label:
    """A value of a label column. A negative number stays one, which is no class."""
    try:
        return as_label(value)
    except ValueError:
        if isinstance(value, int | float) and value < 0 and value == value // 1:
            return int(value)
        raise VarlabError(f"{path} has {value} in column {column!r}, which is no class: set source.label.") from None


def _distinct(column: pa.ChunkedArray) -> tuple[list[object], NDArray[np.int64]]:
    """The different values of a column, null among them, and the index of each row's value."""
    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if types.is_floating(column.type):
        column = column.cast(pa.float64())
    values = compute.unique(column)
    return values.to_pylist(), compute.index_in(column, value_set=values).to_numpy().astype(np.int64)


def _class_names(metadata: Mapping[bytes, bytes] | None, label: str) -> tuple[str, ...] | None:
    """The names of a ClassLabel feature."""
    try:
        names = json.loads((metadata or {})[_FEATURES])["info"]["features"][label]["names"]
        return tuple(map(str, names)) or None
    except (KeyError, TypeError, ValueError):
        return None


def _reason(e: Exception) -> str:
    """The first line of Arrow's explanation."""
    return (str(e).splitlines() or [type(e).__name__])[0].rstrip(". ")
