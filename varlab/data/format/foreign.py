"""Files that somebody else may have written: JSON, names of files and arrays, each checked before it is used."""

from __future__ import annotations

import tokenize
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from varlab.files import require_plain
from varlab.json_file import parse_json

__all__ = ["Entries", "inside", "map_array", "read_entries"]

_LARGEST = 1 << 26  # bytes of a JSON file; an index has about 150 for a shard
_LONGEST = 1 << 10  # characters of a path
_MALFORMED = (ValueError, TypeError, LookupError, AttributeError, SyntaxError, ArithmeticError, MemoryError)


class Entries:
    """The entries of a JSON object, each of the type that is asked for.

    Raises (each method):
        ValueError: the entry is missing or of another type; the text names it.
    """

    def __init__(self, raw: object):
        if not isinstance(raw, dict):
            raise ValueError(f"a {type(raw).__name__} stands where an object should")
        self.raw: dict[str, object] = raw

    def number(self, name: str, *, least: int = 0) -> int:
        """A whole number."""
        value = self._get(name)
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 1 << 62:
            raise self._wrong(name, f"a whole number from {least} on")
        return value

    def text(self, name: str) -> str:
        """A string."""
        value = self._get(name)
        if not isinstance(value, str):
            raise self._wrong(name, "a string")
        return value

    def file(self, name: str) -> str:
        """The path of a file below the folder of this one."""
        return inside(self.text(name))

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of strings."""
        value = self._get(name)
        if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
            raise self._wrong(name, "a list of strings")
        return tuple(value)

    def size(self, name: str) -> tuple[int, int] | None:
        """(H, W), or null."""
        value = self._get(name)
        if value is None:
            return None
        if not isinstance(value, list) or len(value) != 2 or not all(type(n) is int and n > 0 for n in value):
            raise self._wrong(name, "a height and a width")
        return value[0], value[1]

    def counts(self, name: str) -> dict[str, int]:
        """An object of whole numbers; empty if there is none."""
        inner = Entries(self.raw.get(name, {}))
        return {key: inner.number(key) for key in inner.raw}

    def mapping(self, name: str) -> Mapping[str, object]:
        """An object."""
        return Entries(self._get(name)).raw

    def objects(self, name: str) -> list[Entries]:
        """A list of objects."""
        value = self._get(name)
        if not isinstance(value, list):
            raise self._wrong(name, "a list")
        return [Entries(one) for one in value]

    def _get(self, name: str) -> object:
        if name not in self.raw:
            raise ValueError(f"it has no entry {name!r}")
        return self.raw[name]

    def _wrong(self, name: str, right: str) -> ValueError:
        return ValueError(f"its entry {name!r} is not {right}")


def read_entries(path: Path) -> Entries:
    """The entries of a JSON file.

    Raises:
        OSError: it cannot be read, or is no plain file. ValueError: it holds no JSON object in UTF-8, or is too large.
    """
    if require_plain(path).stat().st_size > _LARGEST:
        raise ValueError(f"it has more than {_LARGEST} bytes")
    return Entries(parse_json(path.read_bytes()))


def inside(name: str) -> str:
    """A path that stays below its folder, and names nothing that is hidden.

    Raises:
        ValueError: it does not.
    """
    parts = name.split("/")
    if len(name) > _LONGEST or "\0" in name or any(not part or part.startswith(".") for part in parts):
        raise ValueError(f"{name[:80]!a} is no path of a file below its folder")
    return name


def map_array(path: Path, *, shape: Sequence[int | None], dtype: np.dtype[np.generic] | None) -> NDArray[np.generic]:
    """An array in numpy's file format, mapped into memory. shape, dtype: what it must have; None for any.

    Raises:
        OSError: it cannot be read, or is no plain file. ValueError: it holds no such array.
    """
    try:
        array: NDArray[np.generic] = np.lib.format.open_memmap(require_plain(path), mode="r")
    except (*_MALFORMED, RecursionError, tokenize.TokenError) as e:
        raise ValueError(f"it holds no array: {' '.join(str(e).split())[:200]}") from e
    fits = len(shape) == array.ndim and all(want in (None, has) for want, has in zip(shape, array.shape, strict=True))
    if not fits or (dtype is not None and array.dtype != dtype):
        raise ValueError(f"an array of shape {array.shape} and type {array.dtype.str}")
    return array
