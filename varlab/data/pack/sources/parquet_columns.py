"""Parquet files: their labels at once, their images one row group at a time."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varlab.data.faults import BadSampleError
from varlab.errors import VarlabError

__all__ = ["Survey", "images", "survey"]

HUGGINGFACE = b"huggingface"
"""The key of a schema's metadata under which Hugging Face's datasets tell their features, in JSON."""


@dataclass(frozen=True)
class Survey:
    """A file without its images.

    rows: of each row group. labels: the different ones, in order of their first row. which_n: of each row, its place among
    them. classes: their names, where the file tells them.
    """

    rows: tuple[int, ...]
    labels: list[int | str | None]
    which_n: NDArray[np.int64]
    classes: tuple[str, ...] | None


def survey(path: Path, *, image: str, label: str | None) -> Survey:
    """All but the images is read. image, label: columns; label None leaves every row without one.

    Raises:
        VarlabError: no Parquet file, or one without such columns of such types.
    """
    import pyarrow as pa  # heavy, and no business of whoever only reads shards
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            schema, groups = file.schema_arrow, range(file.metadata.num_row_groups)
            rows = tuple(file.metadata.row_group(group).num_rows for group in groups)
            _check(path, schema, "image", image)
            if label is None:
                return Survey(rows, [None], np.zeros(sum(rows), dtype=np.int64), None)
            _check(path, schema, "label", label)
            labels, which_n = _distinct(file.read(columns=[label], use_threads=False).column(0))
            return Survey(rows, labels, which_n, _class_names(schema.metadata, label))
    except (pa.ArrowException, OSError) as e:
        raise VarlabError(f"{path} cannot be read as Parquet ({_said(e)}): fetch it again, or leave it out.") from e


def images(path: Path, *, group: int, image: str) -> Any:
    """The image column of a row group, as an Arrow array of encoded bytes or nulls.

    Raises:
        BadSampleError: damaged. OSError: the file is gone, or its disk.
    """
    import pyarrow as pa
    from pyarrow import compute, parquet

    try:
        with parquet.ParquetFile(path) as file:
            nested = pa.types.is_struct(file.schema_arrow.field(image).type)
            wanted = f"{image}.bytes" if nested else image
            column = file.read_row_group(group, columns=[wanted], use_threads=False).column(0)
            return compute.struct_field(column, "bytes") if nested else column
    except (pa.ArrowException, OSError) as e:
        if getattr(e, "errno", None):  # Arrow has OSErrors of its own, for content; those have no number
            raise
        raise BadSampleError("damaged", f"row group {group} cannot be read ({_said(e)})") from e


def _check(path: Path, schema: Any, role: str, name: str) -> None:
    """Raises VarlabError where the column that is to be ``role`` is missing, or of a type that it cannot have."""
    if schema.get_field_index(name) < 0:
        others = ", ".join(schema.names)
        remedy = f"set source.{role}" + (", or source.label=null" if role == "label" else "")
        raise VarlabError(f"{path} has no column {name!r}, but {others}: {remedy}.")
    kind = schema.field(name).type
    if role == "image" and not _holds_images(kind):
        raise VarlabError(f"{path} has {kind} in column {name!r}, not the bytes of images: set source.image.")
    if role == "label" and not _holds_labels(kind):
        raise VarlabError(f"{path} has {kind} in column {name!r}, not numbers or names of classes: set source.label.")


def _holds_images(kind: Any) -> bool:
    from pyarrow import types

    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0 and _holds_images(kind.field("bytes").type)
    return bool(types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind))


def _holds_labels(kind: Any) -> bool:
    from pyarrow import types

    if types.is_dictionary(kind):
        return _holds_labels(kind.value_type)
    texts = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return bool(texts or types.is_integer(kind))


def _distinct(column: Any) -> tuple[list[int | str | None], NDArray[np.int64]]:
    """The different values of a column, null among them, and of each row its place in that list."""
    from pyarrow import compute, types

    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    values = compute.unique(column)
    which = compute.index_in(column, value_set=values)
    return values.to_pylist(), which.to_numpy().astype(np.int64)


def _class_names(metadata: Mapping[bytes, bytes] | None, label: str) -> tuple[str, ...] | None:
    """The names of a ClassLabel feature."""
    try:
        names = json.loads((metadata or {})[HUGGINGFACE])["info"]["features"][label]["names"]
        return tuple(map(str, names)) or None
    except (KeyError, TypeError, ValueError):
        return None


def _said(e: Exception) -> str:
    """The first line of Arrow's explanations."""
    return (str(e).splitlines() or [type(e).__name__])[0].rstrip(". ")
