"""Labels: read them from a sample's members, and number them 0 … classes - 1."""

from __future__ import annotations

import json
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Callable, Collection, Mapping, Sequence
from decimal import Decimal
from pathlib import Path

from varlab.data.faults import BadSampleError
from varlab.data.folders.class_names import canonical, in_order
from varlab.errors import VarlabError
from varlab.files import read_bytes

__all__ = [
    "NO_LABEL",
    "UNLABELLED",
    "Label",
    "as_label",
    "class_names",
    "json_fields",
    "names_of",
    "numbering",
    "read_label",
]

Label = int | str | None
"""A class number, or a class name; None for a sample without a label."""

UNLABELLED = ("image",)
"""The one class of samples without labels."""

NO_LABEL = "neither cls nor a label in its json"
"""The detail of a fault: a WebDataset sample without a label."""

_LONGEST = 18  # digits of a number
_LARGEST = 1 << 28  # bytes of a file of class names
_MOST = 1_000_000  # larger numbers are row numbers, not labels


def read_label(cls: bytes | None, fields: Mapping[str, object], where: str) -> Label:
    """The label of a WebDataset sample.

    cls: the content of its member ``cls``. fields: those of its JSON. where: ``cls`` (a number in that member),
    ``json:FIELD``, ``none``; ``auto`` takes cls, or else the JSON's ``label``.

    Raises:
        BadSampleError: bad_label, the content cannot be a label.
    """
    source, _, field = where.partition(":")
    if source in ("auto", "cls") and cls is not None:
        text = cls.removeprefix(BOM_UTF8).strip()  # a byte-order mark, by editors on Windows
        if text == b"-1":
            return None
        if not text.isdigit() or len(text) > _LONGEST:
            raise BadSampleError("bad_label", f"cls holds {text[:20].decode(errors='replace')!r}, not a number")
        return int(text)
    name = field or "label"
    if source not in ("auto", "json") or name not in fields:
        return None
    try:
        return as_label(fields[name])
    except ValueError:
        held = fields[name]
        shown = str(held)[:20] if isinstance(held, bool | float | str) else f"a {type(held).__name__}"
        raise BadSampleError("bad_label", f"json holds {name}: {shown}") from None


def as_label(value: object) -> Label:
    """A label from what people store as one: a name, a whole number of any type; null, NaN and -1 are none.

    Raises:
        ValueError: it is neither.
    """
    if value is None or isinstance(value, str):
        return None if value is None else canonical(value)
    if not isinstance(value, int | float | Decimal):
        raise ValueError(value)
    if value != value or value == -1:  # NaN differs from itself
        return None
    if value < 0 or value != value // 1 or value >= 10**_LONGEST:
        raise ValueError(value)
    return int(value)


def json_fields(content: bytes | None) -> Mapping[str, object]:
    """The fields of a sample's JSON; empty if it is missing, damaged or no object."""
    if not content:
        return {}
    try:
        fields = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}


def class_names(classes: Sequence[str] | str | None) -> tuple[str, ...] | None:
    """The class names of a configuration in label order: a list, or a file with one name a line; None if it gives none.

    The file may be in UTF-8 or UTF-16, with or without a byte-order mark, with the line ends of any system.

    Raises:
        VarlabError: the file cannot be read.
    """
    if not isinstance(classes, str):
        return tuple(canonical(str(name)) for name in classes or ()) or None
    path = Path(classes).expanduser()
    try:
        content = read_bytes(path, _LARGEST)
        text = content.decode("utf-16" if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig")
    except (OSError, UnicodeDecodeError) as e:
        raise VarlabError(f"classes={path} cannot be read ({e}): give a file in UTF-8 with one name a line.") from e
    return tuple(canonical(line.strip()) for line in text.splitlines() if line.strip()) or None


def names_of(labels: Collection[Label]) -> tuple[str, ...]:
    """Class names made from labels: the strings among them in order, or else 0 … the highest number.

    Raises:
        VarlabError: a number too high for a label.
    """
    names = in_order(label for label in labels if isinstance(label, str))
    highest = max((label for label in labels if isinstance(label, int)), default=-1)
    if not names and highest >= _MOST:
        raise VarlabError(f"A label is {highest}, which is too high for a class: set label= to where the labels are.")
    return tuple(names or map(str, range(highest + 1)))


def numbering(names: Sequence[str], *, missing: str) -> Callable[[Label], int]:
    """A function from a label to its class number. missing: the detail of the fault of a sample without a label.

    The function raises BadSampleError for a missing label, and for one that is none of the classes.
    """
    numbers = {canonical(name): i for i, name in enumerate(names)}

    def number(label: Label) -> int:
        if label is None:
            raise BadSampleError("no_label", missing)
        i = numbers.get(label, -1) if isinstance(label, str) else label
        if not 0 <= i < len(names):
            raise BadSampleError("bad_label", f"{label!r} is none of the {len(names)} classes")
        return i

    return number
