"""What can be wrong with a shard set: every kind has a name, is counted, and is never passed over in silence."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from varlab.errors import VarlabError
from varlab.types import Fault

__all__ = ["KINDS", "BadSampleError", "Watch", "listed", "table_of"]

log = logging.getLogger(__name__)

KINDS: Mapping[str, str] = {
    "missing": "a shard that the index names is not there",
    "empty": "a shard of no bytes",
    "cut": "a shard that ends inside a member, or before the archive's end mark",
    "damaged": "a tar header that cannot be read",
    "changed": "bytes that are not those that were indexed",
    "no_image": "a sample without an image of a known ending",
    "no_label": "a sample without a label where others have one",
    "bad_label": "a label that is no number, or none of the classes",
    "interleaved": "a sample whose members do not stand together",
    "duplicate": "a key, or a member of a sample, that comes twice in one shard",
    "corrupt": "an image that cannot be decoded",
    "too_large": "an image of absurdly many pixels",
    "wrong_size": "an image of another size than the index says",
    "no_condition": "a sample without the second image that others have",
    "no_box": "a sample that does not tell its place in its picture",
}
"""Each kind of fault, in the order in which they are reported."""

_NAMED = 8  # faults named one by one in a sentence

# Pillow names the buffer: the same fault would read otherwise each time
_ADDRESS = re.compile(r" <[^<>]* object at 0x[0-9a-f]+>")


class BadSampleError(Exception):
    """Raised while one sample is read; whoever reads turns it into a Fault."""

    def __init__(self, kind: str, detail: str):
        detail = _ADDRESS.sub("", detail)
        super().__init__(detail)
        self.kind, self.detail = kind, detail


def table_of(faults: Iterable[Fault]) -> dict[str, int]:
    """How many samples (or shards) of each kind, in the order of ``KINDS``."""
    counts = Counter[str]()
    for fault in faults:
        counts[fault.kind] += 1
    return {kind: counts[kind] for kind in KINDS if counts[kind]}


def listed(faults: Sequence[Fault]) -> str:
    """Counts by kind, and the first few by name."""
    counts = ", ".join(f"{n} {kind}" for kind, n in table_of(faults).items())
    named = "; ".join(map(str, faults[:_NAMED]))
    return f"{counts}: {named}" + (" …" if len(faults) > _NAMED else "")


class Watch:
    """Counts the bad samples of a split as they are met: each once, whatever epoch meets it again.

    n: samples of the split. most: the share of them that may be bad before ``note`` raises. remedy: what to do then.
    """

    def __init__(self, *, where: str, split: str, n: int, most: float, remedy: str | None = None):
        self._where, self._split, self._n, self._most = where, split, n, most
        self._remedy = remedy or f"mend them (`varlab index {where} check=true` lists all)"
        self.faults: dict[tuple[str, str], Fault] = {}
        self.lost = 0  # samples

    def note(self, faults: Iterable[Fault]) -> None:
        """Log those that are new.

        Raises:
            VarlabError: more bad samples than are allowed.
        """
        before = self.lost
        for fault in faults:
            if (fault.shard, fault.key) not in self.faults:
                self.faults[fault.shard, fault.key] = fault
                self.lost += fault.samples
                log.warning("bad %s sample: %s", self._split, fault)
        if self.lost > before and self.lost > self._most * self._n:
            raise VarlabError(
                f"{self.lost} of {self._n} {self._split} samples in {self._where} are bad, over data.max_bad={self._most:g} "
                f"({listed(list(self.faults.values()))}): {self._remedy}."
            )
