"""Faults of a shard set: each kind has a name, and every fault is counted and reported."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace

from varlab.errors import VarlabError
from varlab.info import Fault

__all__ = ["KINDS", "BadSampleError", "FaultCounter", "count_faults", "describe_faults"]

log = logging.getLogger(__name__)

KINDS: Mapping[str, str] = {
    "missing": "a shard that is in the index but not in the folder",
    "empty": "a shard of 0 bytes",
    "cut": "a shard that ends inside a member, before the archive's end mark, or in zeros",
    "damaged": "bytes of a tar that are no members: a header that cannot be read, zeros in place of members",
    "changed": "bytes that differ from the indexed ones",
    "no_image": "a sample without an image in a known format",
    "no_label": "a sample without a label, although others have one",
    "bad_label": "a label that is not a number, or not one of the classes",
    "link": "a sample with a member that is a link to nothing in the shard",
    "special": "a sample with a member that is no plain file: a device, or a file with holes",
    "interleaved": "a sample with members of other samples between its own",
    "duplicate": "a key, or a member of a sample, that occurs twice in one shard",
    "corrupt": "an image that cannot be decoded",
    "too_large": "an image with more pixels than the limit",
    "bad_values": "an image whose values do not fit the depth of its data set",
    "wrong_size": "an image of another size than the index states",
    "no_condition": "a sample without a second image, although others have one",
    "no_box": "a sample without a crop box, although others have one",
}
"""Each kind of fault, in the order of reports."""

_LOST = ("missing", "empty", "cut")
_NAMED = 8  # faults that a sentence names one by one

# Pillow prints the address of the buffer: without it, equal faults have equal texts
_ADDRESS = re.compile(r" <[^<>]* object at 0x[0-9a-f]+>")


class BadSampleError(Exception):
    """Raised while one sample is read; the reader turns it into a Fault."""

    def __init__(self, kind: str, detail: str):
        detail = _ADDRESS.sub("", detail)
        super().__init__(detail)
        self.kind, self.detail = kind, detail


def count_faults(faults: Iterable[Fault]) -> dict[str, int]:
    """The number of faults of each kind that occurs, in the order of ``KINDS``."""
    counts = Counter(fault.kind for fault in faults)
    return {kind: counts[kind] for kind in KINDS if counts[kind]}


def describe_faults(faults: Sequence[Fault]) -> str:
    """The counts by kind, and the first few faults one by one."""
    counts = ", ".join(f"{n} {kind}" for kind, n in count_faults(faults).items())
    named = "; ".join(map(str, faults[:_NAMED]))
    return f"{counts}: {named}" + (" …" if len(faults) > _NAMED else "")


class FaultCounter:
    """Counts the bad samples of a split, each once even if several epochs meet it.

    where: path of the shard set. n: samples of the split. most: the share of them that may be bad. remedy: the end of the
    error message. shards: the samples of each shard, which are all lost with one that is missing.
    """

    def __init__(
        self,
        *,
        where: str,
        split: str,
        n: int,
        most: float,
        remedy: str | None = None,
        shards: Mapping[str, int] | None = None,
    ):
        self._where, self._split, self._n, self._most = where, split, n, most
        self._shards = shards or {}
        self._remedy = remedy or f"repair them (`varlab index {where} check=true` lists all)"
        self.faults: dict[tuple[str, str], Fault] = {}
        self.lost = 0  # samples

    def note(self, faults: Iterable[Fault]) -> None:
        """Count and log the faults that are new.

        Raises:
            VarlabError: the share of bad samples is above the limit.
        """
        before = self.lost
        for fault in self._new(faults):
            log.warning("bad %s sample: %s", self._split, fault)
        self._check(before)

    def expect(self, faults: Iterable[Fault]) -> None:
        """The same without the log: for a process that reads for another one, and must not go on in vain."""
        before = self.lost
        for _ in self._new(faults):
            pass
        self._check(before)

    def _new(self, faults: Iterable[Fault]) -> Iterator[Fault]:
        """Count the faults that are not known. A shard that is missing stands for all of its samples."""
        for fault in faults:
            of_shard = self.faults.get((fault.shard, ""))
            if of_shard is not None and fault.shard in self._shards and fault.kind in _LOST and of_shard.kind in _LOST:
                continue
            if fault.kind == "missing" and fault.shard in self._shards:
                for known in [known for known in self.faults if known[0] == fault.shard]:
                    self.lost -= self.faults.pop(known).samples
                fault = replace(fault, key="", samples=self._shards[fault.shard])
            if (fault.shard, fault.key) not in self.faults:
                self.faults[fault.shard, fault.key] = fault
                self.lost += fault.samples
                yield fault

    def _check(self, before: int) -> None:
        if self.lost > before and self.lost > self._most * self._n:
            raise VarlabError(
                f"{self.lost} of {self._n} {self._split} samples in {self._where} are bad, over data.max_bad={self._most:g} "
                f"({describe_faults(list(self.faults.values()))}): {self._remedy}."
            )
