"""Scan a WebDataset tar: read its headers once, so that each sample can be read by its offset.

No fault ends the scan: each is named, and every intact sample is listed.
"""

from __future__ import annotations

import logging
import mmap
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from xxhash import xxh3_64_intdigest

from varlab.data.archive.link import MappedLinks
from varlab.data.archive.member import Member
from varlab.data.archive.note import describe_notes
from varlab.data.archive.sample_group import BadGroup, Sample, SampleGroups
from varlab.data.archive.tape import MappedTape
from varlab.data.faults import BadSampleError
from varlab.data.format.index import Shard
from varlab.data.format.labels import json_fields, read_label
from varlab.data.format.table import CONDITION, SampleRecord, Span
from varlab.data.image.depth import Deep
from varlab.info import Fault

__all__ = ["ShardScan", "log_notes", "scan_tar"]

log = logging.getLogger(__name__)


@dataclass
class ShardScan:
    """The samples and the faults of a shard.

    file: its path below the folder of the shard set. bytes, sha256: of the file. sizes: (H, W) of its images. steps: how
    often each was done to one of them on the way to bytes. deep: what those hold that are more than bytes. notes: how often
    which member that belongs to no sample was met.
    """

    file: str
    records: list[SampleRecord] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    bytes: int = 0
    sha256: str = ""
    sizes: set[tuple[int, int]] = field(default_factory=set)
    steps: Counter[str] = field(default_factory=Counter)
    deep: set[Deep] = field(default_factory=set)
    notes: Counter[str] = field(default_factory=Counter)

    @property
    def shard(self) -> Shard:
        """The shard's entry in an index."""
        return Shard(self.file, len(self.records), self.bytes, self.sha256)

    def update(self, check: Callable[[SampleRecord], SampleRecord]) -> None:
        """Replace each record by ``check`` of it; a record for which that raises BadSampleError becomes a fault."""
        kept = []
        for record in self.records:
            try:
                kept.append(check(record))
            except BadSampleError as bad:
                self.faults.append(Fault(bad.kind, self.file, record.key, bad.detail))
        self.records = kept


def scan_tar(folder: Path, file: str, *, label: str = "auto") -> ShardScan:
    """Scan the headers of a shard; members with unknown endings are ignored. label: see ``read_label``."""
    path = folder / file
    if not path.is_file():
        return ShardScan(file, faults=[Fault("missing", file, "", "no such file", samples=0)])
    if not path.stat().st_size:
        return ShardScan(file, faults=[Fault("empty", file, "", "0 bytes", samples=0)])
    try:
        with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as tar:
            return _TarScanner(MappedTape(tar), file, label).run()
    except OSError as e:
        return ShardScan(file, faults=[Fault("missing", file, "", f"cannot be read: {e.strerror}", samples=0)])


def log_notes(scans: Iterable[ShardScan]) -> None:
    """Say in one line what was passed over."""
    notes = sum((scan.notes for scan in scans), Counter[str]())
    if notes:
        log.info("passed over: %s", describe_notes(notes))


class _TarScanner:
    """The scan of one shard."""

    def __init__(self, tape: MappedTape, file: str, label: str):
        self._tape, self._label = tape, label
        self._groups = SampleGroups(tape, MappedLinks(tape))
        self._scan = ShardScan(file)

    def run(self) -> ShardScan:
        for group in self._groups:
            if isinstance(group, BadGroup):
                self._add_fault(group)
            else:
                self._add(group)
        self._drop_torn()
        for damage in self._groups.damages:
            lost = self._groups.lost(damage)
            self._scan.faults.append(Fault(damage.kind, self._scan.file, "", damage.detail, samples=lost))
        self._scan.notes = +self._groups.notes
        return self._scan

    def _add(self, sample: Sample) -> None:
        try:
            self._scan.records.append(self._record(sample))
        except BadSampleError as bad:
            self._add_fault(BadGroup(sample.key, bad.kind, bad.detail))

    def _add_fault(self, bad: BadGroup) -> None:
        self._scan.faults.append(Fault(bad.kind, self._scan.file, bad.key, bad.detail, samples=bad.samples))

    def _drop_torn(self) -> None:
        """Leave samples out that have members elsewhere; they have a fault of their own."""
        torn, scan = self._groups.torn, self._scan
        scan.records = [record for record in scan.records if record.key not in torn]
        scan.faults = [fault for fault in scan.faults if fault.key not in torn or fault.kind == "interleaved"]

    def _record(self, sample: Sample) -> SampleRecord:
        members = sample.members
        cls, text = (self._tape.read(members[e].content) if e in members else None for e in ("cls", "json"))
        fields = json_fields(text)
        return SampleRecord(
            key=sample.key,
            image=self._span(members[sample.image]),
            format=sample.form,
            label=read_label(cls, fields, self._label),
            condition=self._span(members[CONDITION]) if CONDITION in members else None,
            box=_box(fields.get("box")),
        )

    def _span(self, member: Member) -> Span:
        content = member.content
        return Span(content.offset, content.size, xxh3_64_intdigest(self._tape.read(content)))


def _box(value: object) -> tuple[float, ...] | None:
    """The four numbers in [0, 1] of a sample's JSON."""
    if isinstance(value, list) and len(value) == 4 and all(isinstance(x, int | float) and 0 <= x <= 1 for x in value):
        return tuple(map(float, value))
    return None
