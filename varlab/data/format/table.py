"""The table of a split: where each of its samples lies, as one array that every process maps into its memory.

It is what makes a shard set ready in milliseconds, remote or not, and every read verifiable: each row has the xxh3 of the
bytes that it points to.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from varlab.config import Config
from varlab.data.format.tar import FORMATS, Place

__all__ = ["FORMAT_NAMES", "Row", "make_table", "to_bytes"]

FORMAT_NAMES = sorted(set(FORMATS.values()))
"""Pillow's names of the formats; a row has the place in this list."""

_PLAIN = [("shard", "<u4"), ("offset", "<u8"), ("size", "<u4"), ("check", "<u8"), ("format", "u1"), ("label", "<i8")]
_CONDITION = [("cond_offset", "<u8"), ("cond_size", "<u4"), ("cond_check", "<u8")]
_BOX = [("box", "<f4", (4,))]


@dataclass(frozen=True)
class Row:
    """A sample on its way into a table: its place, and the number of its shard among its split's."""

    shard: int
    place: Place


def make_table(rows: Sequence[Row], *, conditions: bool, boxes: bool) -> NDArray[Any]:
    """All rows as one structured array; ``label`` must be a number by now (0 stands for none)."""
    longest = max((len(row.place.key.encode()) for row in rows), default=1)
    fields: list[Any] = [*_PLAIN, ("key", f"S{longest}")] + _CONDITION * conditions + _BOX * boxes
    table = np.zeros(len(rows), dtype=fields)
    for name, column in _columns(rows, conditions, boxes).items():
        table[name] = column
    return table


def _columns(rows: Sequence[Row], conditions: bool, boxes: bool) -> Config:
    places = [row.place for row in rows]
    columns: Config = {
        "shard": [row.shard for row in rows],
        "offset": [p.span[0] for p in places],
        "size": [p.span[1] for p in places],
        "check": np.array([p.check for p in places], dtype=np.uint64),
        "format": [FORMAT_NAMES.index(p.format) for p in places],
        "label": [p.label or 0 for p in places],
        "key": [p.key.encode() for p in places],
    }
    if conditions:
        seconds = [p.condition or ((0, 0), 0) for p in places]
        columns |= {"cond_offset": [span[0] for span, _ in seconds], "cond_size": [span[1] for span, _ in seconds]}
        columns["cond_check"] = np.array([check for _, check in seconds], dtype=np.uint64)
    if boxes:
        columns["box"] = np.array([p.box for p in places], dtype=np.float32).reshape(-1, 4)
    return columns


def to_bytes(table: NDArray[Any]) -> bytes:
    """numpy's own file format; the same table gives the same bytes."""
    buffer = io.BytesIO()
    np.lib.format.write_array(buffer, table, version=(2, 0), allow_pickle=False)
    return buffer.getvalue()
