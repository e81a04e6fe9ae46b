"""Which class a sample is of, as its members tell it."""

from __future__ import annotations

import json
from collections.abc import Mapping

from varlab.data.faults import BadSampleError

__all__ = ["json_of", "label_of"]


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
