"""The table of a split: the place and hash of every sample's bytes, as one array that processes map into memory.

With it a shard set, local or remote, is ready in milliseconds, and every read is verified.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from varlab.data.format.foreign import map_array

__all__ = [
    "CONDITION",
    "FORMATS",
    "FORMAT_NAMES",
    "SampleRecord",
    "Span",
    "check_table",
    "make_table",
    "read_table",
    "table_bytes",
]

FORMATS = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}
"""The usual file endings of images, with Pillow's names of the formats."""

FORMAT_NAMES = ("JPEG", "PNG", "WEBP")
"""Pillow's names of formats; a row holds the index into this list, or its length for another format.

It says what an image was when it was indexed, for people. Reading decides by the content.
"""

CONDITION = "cond.png"
"""The ending of a sample's second image."""


class Span(NamedTuple):
    """The bytes of a member in its tar: ``size`` bytes from ``offset`` on, and their hash ``check`` (xxh3, 64 bits)."""

    offset: int
    size: int
    check: int


@dataclass(frozen=True)
class SampleRecord:
    """A sample in a shard: where its image is, in which format (Pillow's name), and what belongs to it.

    label: a number, a name that has no number yet, or None in shards without labels. condition: the second image, a PNG.
    box: the crop's (top, left, bottom, right) in the original picture, in [0, 1].
    """

    key: str
    image: Span
    format: str
    label: int | str | None
    condition: Span | None = None
    box: tuple[float, ...] | None = None


def make_table(shards: Sequence[Sequence[SampleRecord]], *, conditions: bool, boxes: bool) -> NDArray[np.void]:
    """The records of all shards of a split as one structured array; every label is a number or None (stored as 0)."""
    longest = max((len(record.key.encode()) for shard in shards for record in shard), default=1)
    rows = [_row(number, record, conditions, boxes) for number, shard in enumerate(shards) for record in shard]
    return np.array(rows, dtype=_dtype(longest, conditions=conditions, boxes=boxes))


def _dtype(longest: int, *, conditions: bool, boxes: bool) -> np.dtype[np.void]:
    """The columns of a table. longest: bytes of a key."""
    fields: list[Any] = [("shard", "<u4"), ("offset", "<u8"), ("size", "<u4"), ("check", "<u8")]
    fields += [("format", "u1"), ("label", "<i8"), ("key", f"S{longest}")]
    if conditions:
        fields += [("cond_offset", "<u8"), ("cond_size", "<u4"), ("cond_check", "<u8")]
    if boxes:
        fields += [("box", "<f4", (4,))]
    return np.dtype(fields)


def read_table(path: Path, count: int, *, conditions: bool, boxes: bool) -> NDArray[np.void]:
    """A table of that many rows, mapped into memory.

    Raises:
        OSError: it cannot be read. ValueError: it is no such table.
    """
    array: NDArray[Any] = map_array(path, shape=(count,), dtype=None)
    longest = array.dtype["key"].itemsize if "key" in (array.dtype.names or ()) else 1
    if array.dtype != _dtype(longest, conditions=conditions, boxes=boxes):
        raise ValueError("it has other columns")
    return array


def check_table(table: NDArray[np.void], *, count_S: Sequence[int], bytes_S: Sequence[int], classes: int) -> None:
    """Compare the rows with the shards and the classes of their index. Raises ValueError if one does not fit."""
    shard_N, label_N = table["shard"], table["label"]
    if shard_N.max() >= len(count_S) or np.bincount(shard_N, minlength=len(count_S)).tolist() != list(count_S):
        raise ValueError("its rows name other shards")
    if label_N.min() < 0 or label_N.max() >= classes:
        raise ValueError(f"it has a label that is none of the {classes} classes")
    end_N = np.array(bytes_S, dtype=np.uint64)[shard_N]
    for column in ("", "cond_") if "cond_size" in (table.dtype.names or ()) else ("",):
        offset_N, size_N = table[f"{column}offset"], table[f"{column}size"]
        if (offset_N > end_N).any() or (size_N > end_N - offset_N).any():
            raise ValueError("it has a sample past the end of its shard")


def _row(shard: int, record: SampleRecord, conditions: bool, boxes: bool) -> tuple[object, ...]:
    form = FORMAT_NAMES.index(record.format) if record.format in FORMAT_NAMES else len(FORMAT_NAMES)
    row = (shard, *record.image, form, record.label or 0, record.key.encode())
    condition = (record.condition or Span(0, 0, 0)) if conditions else ()
    return (*row, *condition, record.box) if boxes else (*row, *condition)


def table_bytes(table: NDArray[np.void]) -> bytes:
    """The table in numpy's file format; equal tables give equal bytes."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, table, version=(2, 0), allow_pickle=False)
    return buffer.getvalue()
