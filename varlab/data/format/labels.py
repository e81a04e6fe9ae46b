"""Labels: read them from a sample's members, and number them 0 … classes - 1."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from varlab.data.faults import BadSampleError
from varlab.errors import VarlabError

__all__ = ["NO_LABEL", "UNLABELLED", "Label", "class_names", "json_fields", "names_of", "numbering", "read_label"]

Label = int | str | None
"""A class number, or a class name; None for a sample without a label."""

UNLABELLED = ("image",)
"""The one class of samples without labels."""

NO_LABEL = "neither cls nor a label in its json"
"""The detail of a fault: a WebDataset sample without a label."""

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
        text = cls.strip()
        if not text.isdigit():
            raise BadSampleError("bad_label", f"cls holds {text[:20].decode(errors='replace')!r}, not a number")
        return int(text)
    name = field or "label"
    if source not in ("auto", "json") or name not in fields:
        return None
    label = fields[name]
    if isinstance(label, str) or (type(label) is int and label >= 0):
        return label
    raise BadSampleError("bad_label", f"json holds {name}: {str(label)[:20]}")


def json_fields(content: bytes | None) -> Mapping[str, object]:
    """The fields of a sample's JSON; empty if it is missing, damaged or no object."""
    try:
        fields = json.loads(content or b"{}")
    except ValueError:
        return {}
    return fields if isinstance(fields, dict) else {}


def class_names(classes: Sequence[str] | str | None) -> tuple[str, ...] | None:
    """The class names of a configuration in label order: a list, or a file with one name a line; None if it gives none.

    Raises:
        VarlabError: the file cannot be read.
    """
    if not isinstance(classes, str):
        return tuple(map(str, classes or ())) or None
    path = Path(classes).expanduser()
    try:
        return tuple(line.strip() for line in path.read_text().splitlines() if line.strip()) or None
    except (OSError, UnicodeDecodeError) as e:
        raise VarlabError(f"classes={path} cannot be read ({e}): give a file with one name a line.") from e


def names_of(labels: Collection[Label]) -> tuple[str, ...]:
    """Class names made from labels: the sorted strings among them, or else 0 … the highest number.

    Raises:
        VarlabError: a number too high for a label.
    """
    names = sorted(label for label in labels if isinstance(label, str))
    highest = max((label for label in labels if isinstance(label, int)), default=-1)
    if not names and highest >= _MOST:
        raise VarlabError(f"A label is {highest}, which is too high for a class: set label= to where the labels are.")
    return tuple(names or map(str, range(highest + 1)))


def numbering(names: Sequence[str], *, missing: str) -> Callable[[Label], int]:
    """A function from a label to its class number. missing: the detail of the fault of a sample without a label.

    The function raises BadSampleError for a missing label, and for one that is none of the classes.
    """
    numbers = {name: i for i, name in enumerate(names)}

    def number(label: Label) -> int:
        if label is None:
            raise BadSampleError("no_label", missing)
        i = numbers.get(label, -1) if isinstance(label, str) else label
        if not 0 <= i < len(names):
            raise BadSampleError("bad_label", f"{label!r} is none of the {len(names)} classes")
        return i

    return number
