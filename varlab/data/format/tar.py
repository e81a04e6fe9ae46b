"""Scan a WebDataset tar: read its headers once, so that each sample can be read by its offset.

No fault ends the scan: each is named, and every intact sample is listed.
"""

from __future__ import annotations

import mmap
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from tarfile import AREGTYPE, BLOCKSIZE, GNUTYPE_LONGNAME, REGTYPE, XHDTYPE

from xxhash import xxh3_64_intdigest

from varlab.data.faults import BadSampleError
from varlab.data.format.index import Shard
from varlab.data.format.labels import json_fields, read_label
from varlab.data.format.table import CONDITION, FORMATS, SampleRecord, Span
from varlab.data.image.depth import Deep
from varlab.types import Fault

__all__ = ["ShardScan", "scan_tar"]


@dataclass
class ShardScan:
    """The samples and the faults of a shard.

    file: its path below the folder of the shard set. bytes, sha256: of the file. sizes: (H, W) of its images. steps: how
    often each was done to one of them on the way to bytes. deep: what those hold that are more than bytes.
    """

    file: str
    records: list[SampleRecord] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    bytes: int = 0
    sha256: str = ""
    sizes: set[tuple[int, int]] = field(default_factory=set)
    steps: Counter[str] = field(default_factory=Counter)
    deep: set[Deep] = field(default_factory=set)

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
    with path.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as tar:
        return _TarScanner(tar, file, label).run()


class _TarScanner:
    """The scan of one shard. Members are slices of the mapped file."""

    def __init__(self, tar: mmap.mmap, file: str, label: str):
        self._tar, self._label = tar, label
        self._scan = ShardScan(file)
        self._seen: dict[str, set[str]] = {}  # the endings of each key so far
        self._torn: set[str] = set()  # keys with other samples between their members

    def run(self) -> ShardScan:
        key, members = "", dict[str, slice]()
        for name, content in self._members():
            folder, _, base = name.rpartition("/")
            stem, _, ending = base.partition(".")  # WebDataset cuts at the first dot of the base name
            following = f"{folder}/{stem}" if folder else stem
            if following != key:
                self._add(key, members)
                key, members = following, {}
            ending = ending.lower()
            if ending in members:
                self._fault("duplicate", key, f"two members {ending}")
            members.setdefault(ending, content)
        self._add(key, members)
        self._scan.records = [record for record in self._scan.records if record.key not in self._torn]
        return self._scan

    def _add(self, key: str, members: dict[str, slice]) -> None:
        """Add the sample of a group of adjacent members."""
        before = self._seen.setdefault(key, set())
        repeated, separate = before & members.keys(), bool(before)
        before.update(members)
        if repeated:
            self._fault("duplicate", key, f"{', '.join(sorted(repeated))} occurred before: the first counts")
        elif separate and key not in self._torn:
            self._torn.add(key)
            self._fault("interleaved", key, "other samples lie between its members")
        elif members and not separate:
            try:
                self._scan.records.append(self._record(key, members))
            except BadSampleError as bad:
                self._fault(bad.kind, key, bad.detail)

    def _fault(self, kind: str, key: str, detail: str) -> None:
        self._scan.faults.append(Fault(kind, self._scan.file, key, detail))

    def _record(self, key: str, members: dict[str, slice]) -> SampleRecord:
        ending = next((e for e in members if e in FORMATS), None)
        if ending is None:
            raise BadSampleError("no_image", f"none of {', '.join(FORMATS)}, only {', '.join(members)}")
        cls, text = (self._tar[members[e]] if e in members else None for e in ("cls", "json"))
        fields = json_fields(text)
        return SampleRecord(
            key=key,
            image=self._span(members[ending]),
            format=FORMATS[ending],
            label=read_label(cls, fields, self._label),
            condition=self._span(members[CONDITION]) if CONDITION in members else None,
            box=_box(fields.get("box")),
        )

    def _span(self, content: slice) -> Span:
        return Span(content.start, content.stop - content.start, xxh3_64_intdigest(self._tar[content]))

    def _members(self) -> Iterator[tuple[str, slice]]:
        """(name, content) of every plain file in the archive: ustar, GNU's long names, pax.

        A header that cannot be read is a fault; the scan goes on at the next readable one.
        """
        at, end, long_name = 0, len(self._tar), ""
        while at + BLOCKSIZE <= end:
            block = self._tar[at : at + BLOCKSIZE]
            if not block.rstrip(b"\0"):
                return
            header = _header(block)
            if header is None:
                self._fault("damaged", "", f"no tar header at byte {at}")
                at = self._next_header(at + BLOCKSIZE)
                continue
            name, kind, size = header
            content = slice(at + BLOCKSIZE, at + BLOCKSIZE + size)
            if content.stop > end:
                self._fault("cut", "", f"the member at byte {at} should end at byte {content.stop}, the file has {end}")
                return
            if kind == GNUTYPE_LONGNAME:
                long_name = _text(self._tar[content])
            elif kind == XHDTYPE:
                long_name = _pax_path(self._tar[content])
            else:
                if kind in (REGTYPE, AREGTYPE):
                    yield long_name or name, content
                long_name = ""
            at = content.start + -(-size // BLOCKSIZE) * BLOCKSIZE
        self._fault("cut", "", f"the file ends at byte {end} without an end of archive")

    def _next_header(self, at: int) -> int:
        """The offset of the next header with a valid checksum, or of the end."""
        while at + BLOCKSIZE <= len(self._tar):
            block = self._tar[at : at + BLOCKSIZE]
            if block[257:262] == b"ustar" and _header(block) is not None:
                return at
            at += BLOCKSIZE
        return at


def _box(value: object) -> tuple[float, ...] | None:
    """The four numbers in [0, 1] of a sample's JSON."""
    if isinstance(value, list) and len(value) == 4 and all(isinstance(x, int | float) and 0 <= x <= 1 for x in value):
        return tuple(map(float, value))
    return None


def _header(block: bytes) -> tuple[str, bytes, int] | None:
    """Name, type and size of the member after a header; None if the block is none. tarfile's parser is four times slower."""
    digits, checksum = block[124:136], block[148:156]
    try:
        if int(checksum.strip(b" \0"), 8) != sum(block) - sum(checksum) + 8 * 32:
            return None
        # sizes above 8 GiB are in base 256
        size = int.from_bytes(digits[1:], "big") if digits[0] & 0x80 else int(digits.strip(b" \0") or b"0", 8)
    except ValueError:
        return None
    name, prefix = _text(block[:100]), _text(block[345:500])
    if prefix and block[257:263] == b"ustar\0":
        name = f"{prefix}/{name}"
    return (name, block[156:157], size) if size >= 0 else None


def _pax_path(content: bytes) -> str:
    """The path in a pax header's records (``LENGTH key=value``); empty if it has none."""
    while content:
        length, _, _ = content.partition(b" ")
        if not length.isdigit() or not 0 < int(length) <= len(content):
            return ""
        record, content = content[: int(length)], content[int(length) :]
        key, _, value = record[len(length) + 1 : -1].partition(b"=")
        if key == b"path":
            return value.decode("utf-8", errors="replace")
    return ""


def _text(content: bytes) -> str:
    return content.split(b"\0", 1)[0].decode("utf-8", errors="replace")
