"""Labels as others write them, numbers or names, into the numbers 0 … classes - 1."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from varlab.data.faults import BadSampleError
from varlab.data.format.tar import Scan
from varlab.errors import VarlabError
from varlab.types import Fault

__all__ = ["UNLABELLED", "class_names", "names_of", "number_labels", "numbering"]

UNLABELLED = ("image",)
"""The one class of samples without labels."""

Numbering = Callable[[int | str | None], int]

_MOST = 1_000_000  # more classes than this are row numbers taken for labels


def class_names(classes: Sequence[str] | str | None) -> tuple[str, ...] | None:
    """Names in label order as a configuration gives them: a list, or a file with one a line; None where it gives none.

    Raises:
        VarlabError: a file that cannot be read.
    """
    if not isinstance(classes, str):
        return tuple(map(str, classes or ())) or None
    path = Path(classes).expanduser()
    try:
        return tuple(line.strip() for line in path.read_text().splitlines() if line.strip()) or None
    except (OSError, UnicodeDecodeError) as e:
        raise VarlabError(f"classes={path} cannot be read ({e}): give a file with one name a line.") from e


def names_of(labels: Collection[int | str | None]) -> tuple[str, ...]:
    """What classes are called where nobody says so: the strings among the labels in order, or 0 … the highest number.

    Raises:
        VarlabError: a number too high for a label.
    """
    found = sorted(label for label in labels if isinstance(label, str))
    highest = max((label for label in labels if isinstance(label, int)), default=-1)
    if not found and highest >= _MOST:
        raise VarlabError(f"A label is {highest}, which no class can be: say where the labels are with label=.")
    return tuple(found) if found else tuple(str(i) for i in range(highest + 1))


def numbering(names: Sequence[str], *, missing: str) -> Numbering:
    """From a label to its number among so many classes. A call raises BadSampleError for none (``missing`` says what is
    not there) and for one that is no class."""
    number = {name: i for i, name in enumerate(names)}

    def numbered(label: int | str | None) -> int:
        if label is None:
            raise BadSampleError("no_label", missing)
        i = number.get(label, -1) if isinstance(label, str) else label
        if not 0 <= i < len(names):
            raise BadSampleError("bad_label", f"{label!r} is none of the {len(names)} classes")
        return i

    return numbered


def number_labels(scans: Mapping[str, Scan], *, label: str, classes: tuple[str, ...] | None) -> tuple[str, ...]:
    """Give every sample the number of its label, drop (as a fault) those without one; the classes' names.

    scans: by shard; changed in place. label: as for ``scan``. classes: the names, or None for those that are found.
    """
    labels = {place.label for scan in scans.values() for place in scan.places}
    if label == "none" or labels <= {None}:
        _relabel(scans, lambda label: 0)
        return classes or UNLABELLED
    names = classes or names_of(labels)
    _relabel(scans, numbering(names, missing="neither cls nor a label in its json"))
    return names


def _relabel(scans: Mapping[str, Scan], numbered: Numbering) -> None:
    for shard, scan in scans.items():
        kept = []
        for place in scan.places:
            try:
                kept.append(replace(place, label=numbered(place.label)))
            except BadSampleError as bad:
                scan.faults.append(Fault(bad.kind, shard, place.key, bad.detail))
        scan.places = kept
