"""Which class a sample is of, as its members tell it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

from varlab.data.faults import BadSampleError

__all__ = ["json_of", "label_of", "numbered"]


def label_of(cls: bytes | None, told: Mapping[str, object], label: str) -> int | str | None:
    """A number, or a name yet to be numbered; None where the sample does not tell.

    cls: the content of its member ``cls``. told: of its JSON. label: where to look, ``cls`` (a number in its own member),
    ``json:FIELD``, ``none``; ``auto`` takes the first of cls and a JSON's ``label`` that there is.

    Raises:
        BadSampleError: bad_label, what stands there can be no label.
    """
    source, _, field = label.partition(":")
    if source in ("auto", "cls") and cls is not None:
        text = cls.strip()
        if not text.isdigit():
            raise BadSampleError("bad_label", f"cls holds {text[:20].decode(errors='replace')!r}, not a number")
        return int(text)
    named = field or "label"
    if source in ("auto", "json") and named in told:
        found = told[named]
        if isinstance(found, bool) or not isinstance(found, int | str) or (isinstance(found, int) and found < 0):
            raise BadSampleError("bad_label", f"json holds {named}: {str(found)[:20]}")
        return found
    return None


def json_of(content: bytes | None) -> dict[str, object]:
    """What a sample's JSON tells; nothing where it is none, or no object."""
    try:
        told = json.loads(content or b"{}")
    except ValueError:
        return {}
    return told if isinstance(told, dict) else {}


def numbered(label: int | str | None, names: Sequence[str], number: Mapping[str, int]) -> int:
    """The number of a label. names: of the classes, in order; number: of each name.

    Raises:
        BadSampleError: no_label, or bad_label where it is none of the classes.
    """
    if label is None:
        raise BadSampleError("no_label", "neither cls nor a label in its json")
    i = number.get(label, -1) if isinstance(label, str) else label
    if not 0 <= i < len(names):
        raise BadSampleError("bad_label", f"{label!r} is none of the {len(names)} classes")
    return i
