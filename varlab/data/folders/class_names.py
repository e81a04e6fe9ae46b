"""Names of classes: their order, their spelling, and names that can be mistaken for each other."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

__all__ = ["canonical", "in_order", "is_number", "likenesses", "misplaced", "named", "permuted", "printable"]

_MOST_NAMED = 10  # in a sentence


def printable(name: str) -> str:
    r"""A file's name without bytes that are no UTF-8: they are written as ``\xe9``."""
    try:
        return os.fsencode(name).decode("utf-8", errors="backslashreplace")
    except UnicodeEncodeError:  # half a character, in JSON
        return name.encode(errors="backslashreplace").decode()


def named(names: Sequence[str]) -> str:
    """The first names of a list, for a sentence."""
    shown = ", ".join(printable(name) for name in names[:_MOST_NAMED])
    return f"{shown} and {len(names) - _MOST_NAMED:,} more" if len(names) > _MOST_NAMED else shown


def canonical(name: str) -> str:
    """The one spelling of a class name. A Mac writes é as two characters (NFD), others as one (NFC)."""
    return unicodedata.normalize("NFC", printable(name))


def is_number(name: str) -> bool:
    """Whether a class is called by a whole number."""
    return re.fullmatch(r"-?[0-9]+", name) is not None


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Class names in label order: by value if all of them are whole numbers (2 before 10), or else alphabetical."""
    names = set(names)
    if names and all(map(is_number, names)):
        return tuple(sorted(names, key=lambda name: (int(name), len(name), name)))
    return tuple(sorted(names))


def likenesses(names: Sequence[str]) -> list[str]:
    """Sentences about classes that are told apart by their letter case, spaces or leading zeros alone."""
    numbers = [name for name in names if is_number(name)]
    alike = [*_alike(names, lambda name: " ".join(name.casefold().split())), *_alike(numbers, int)]
    return [
        f"classes {' and '.join(map(repr, group))} have nearly the same name: are they one class?" for group in alike
    ]


def _alike(names: Sequence[str], key: Callable[[str], object]) -> list[list[str]]:
    groups = defaultdict(list)
    for name in names:
        groups[key(name)].append(name)
    return [group for group in groups.values() if len(group) > 1]


def permuted(knows: Sequence[str], has: Sequence[str]) -> bool:
    """Whether two lists name the same classes in another order."""
    first, second = [canonical(name) for name in knows], [canonical(name) for name in has]
    return first != second and sorted(first) == sorted(second)


def misplaced(numbers: Sequence[str], names: Sequence[str]) -> str | None:
    """The first name that is a number, but not that of its place; None if each fits, or if names are no numbers.

    numbers: the classes of a model that knows numbers alone: "0" … "n-1".
    """
    if not all(map(is_number, names)):
        return None
    return next((name for number, name in zip(numbers, names, strict=False) if int(number) != int(name)), None)
