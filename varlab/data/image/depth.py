"""Values of more than 8 bits: how many bits they really have, decided once per data set, and their scaling to bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from varlab.data.faults import BadSampleError
from varlab.errors import VarlabError

__all__ = ["ASSUMED", "U8", "Deep", "Depths", "describe_depths", "read_depths", "scaled", "widest"]

U8 = NDArray[np.uint8]

Depths = Mapping[str, int]
"""The bits of ``integer`` and of ``float`` values: white is 2^bits - 1, so 1 bit means floats in [0, 1].

A kind that has no entry is scaled by each image's own largest value.
"""

ASSUMED: Depths = {"integer": 16, "float": 1}
"""The depths of images that no data set describes."""

_STEPS = {"integer": (8, 10, 12, 14, 16), "float": (1, 8, 10, 12, 14, 16)}


class Deep(NamedTuple):
    """What an image of more than 8 bits holds: the kind of its values, and the fewest usual bits that reach the largest."""

    kind: str
    bits: int


def read_depths(asked: object, *, auto: Depths) -> Depths:
    """The depths that a key asks for: a number of bits (1 for floats in [0, 1]), or ``auto``.

    Raises:
        VarlabError: it is neither.
    """
    if asked == "auto":
        return auto
    if isinstance(asked, int) and not isinstance(asked, bool) and 1 <= asked <= 16:
        return dict.fromkeys(_STEPS, asked)
    raise VarlabError(f"depth={asked} is unknown: use auto, or the bits of a value from 1 (floats in [0, 1]) to 16.")


def widest(found: Iterable[Deep]) -> dict[str, int]:
    """The depths of a data set with these images: its largest value decides."""
    depths: dict[str, int] = {}
    for kind, bits in sorted(found):
        depths[kind] = max(bits, depths.get(kind, 0))
    return depths


def describe_depths(depths: Depths) -> str:
    """The depths in words, such as "integers of 12 bits, floats in [0, 1]"."""
    return ", ".join(
        f"{kind}s in [0, 1]" if (kind, bits) == ("float", 1) else f"{kind}s of {bits} bits"
        for kind, bits in sorted(depths.items(), reverse=True)
    )


def scaled(values: NDArray[np.integer | np.floating], depths: Depths, *, key: str) -> tuple[U8, Deep]:
    """Scale integers or floats to bytes; also return what they hold. key: the setting that a message names.

    Raises:
        BadSampleError: values are negative, not finite, or larger than the depth allows.
    """
    kind = "float" if values.dtype.kind == "f" else "integer"
    slack = 2e-3 if kind == "float" else 0.0  # for rounding, as a share of white
    low, high = float(values.min(initial=0)), float(values.max(initial=0))
    own = next((bits for bits in _STEPS[kind] if high <= _white(bits) * (1 + slack)), None)
    if own is None or not low >= -slack * _white(own):  # "not a number" fails both
        raise BadSampleError("bad_values", f"{kind} values from {low:g} to {high:g}: scale them to 0 … 255 first")
    bits = depths.get(kind, own)
    if high > _white(bits) * (1 + slack):
        raise BadSampleError("bad_values", f"{kind} values up to {high:g}, over {bits} bits: set {key}={own}")
    if kind == "integer" and bits >= 8:
        return np.right_shift(values.astype(np.int32, copy=False), bits - 8).astype(np.uint8), Deep(kind, own)
    factor = 255 / _white(bits) if bits <= 8 else 2.0 ** (8 - bits)
    rounded = values.astype(np.float64) * factor + (0.5 if bits <= 8 else 0)
    return rounded.clip(0, 255).astype(np.uint8), Deep(kind, own)


def _white(bits: int) -> int:
    return (1 << bits) - 1
