"""Notes: members of tars that belong to no sample, counted for one line of the log."""

from __future__ import annotations

from collections import Counter

__all__ = ["describe_notes"]

_NAMED = 16  # that the line names


def describe_notes(notes: Counter[str]) -> str:
    """How many there are, and the most frequent names among them."""
    named = ", ".join(f"{n} × {note}" for note, n in notes.most_common(_NAMED))
    count = "1 member that belongs" if notes.total() == 1 else f"{notes.total()} members that belong"
    return f"{count} to no sample ({named}{', …' if len(notes) > _NAMED else ''})"
