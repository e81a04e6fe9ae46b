"""What a WebDataset tar holds and where: its headers read once, so that any sample can be fetched by its offset.

Nothing that is wrong ends the reading: each fault is named, and what is whole is found.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from xxhash import xxh3_64_intdigest

from varlab.data.faults import BadSampleError
from varlab.data.format.sample_label import json_of, label_of
from varlab.types import Fault

__all__ = ["CONDITION", "FORMATS", "Place", "Scan", "scan"]

FORMATS = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}
"""The endings that are decoded, with Pillow's names for them. Nothing else is: least of all a pickle."""

CONDITION = "cond.png"
"""The ending of a sample's second image."""

BLOCK = 512
# the fields of a header
_NAME, _SIZE, _SUM, _KIND = slice(0, 100), slice(124, 136), slice(148, 156), slice(156, 157)
_MAGIC, _PREFIX = slice(257, 262), slice(345, 500)

Span = tuple[int, int]
"""Offset and size of a member's content in the tar."""


@dataclass(frozen=True)
class Place:
    """One sample: its image lies at ``span``, in Pillow's ``format``, and hashes to ``check`` (xxh3, 64 bits).

    label: a number, or a name yet to be numbered, or None where the shards have no labels. condition: span and hash of the
    second image, a PNG. box: of the image in the picture that it was cut from. None where there is none.
    """

    key: str
    span: Span
    check: int
    format: str
    label: int | str | None
    condition: tuple[Span, int] | None = None
    box: tuple[float, ...] | None = None


@dataclass
class Scan:
    """What was found in a shard."""

    places: list[Place] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)


def scan(path: Path, *, label: str = "auto") -> Scan:
    """The samples of a shard in order, and what is wrong with it. Members of unknown endings are passed over.

    label: where it is told, see ``label_of``.
    """
    if not path.is_file():
        return Scan(faults=[Fault("missing", path.name, "", "no such file", samples=0)])
    if not path.stat().st_size:
        return Scan(faults=[Fault("empty", path.name, "", "0 bytes", samples=0)])
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as tar:
        return _Scanner(tar, path.name, label).run()


class _Scanner:
    """The reading of one shard."""

    def __init__(self, tar: mmap.mmap, shard: str, label: str):
        self._tar, self._shard, self._label = tar, shard, label
        self._found = Scan()
        self._seen: dict[str, set[str]] = {}  # the members of each key so far
        self._torn: set[str] = set()  # keys whose members stand apart

    def run(self) -> Scan:
        key, members = "", dict[str, Span]()
        for name, span in _Members(self._tar, self._shard, self._found.faults):
            folder, _, base = name.rpartition("/")
            stem, _, ending = base.partition(".")  # WebDataset cuts at the first dot of the base name
            following = f"{folder}/{stem}" if folder else stem
            if following != key and members:
                self._take(key, members)
                members = {}
            key, ending = following, ending.lower()
            if ending in members:
                self._fault("duplicate", key, f"two members {ending}")
            members.setdefault(ending, span)
        if members:
            self._take(key, members)
        self._found.places = [place for place in self._found.places if place.key not in self._torn]
        return self._found

    def _take(self, key: str, members: dict[str, Span]) -> None:
        """One group of neighbouring members."""
        try:
            before = self._seen.setdefault(key, set())
            again, apart = before & members.keys(), bool(before)
            before.update(members)
            if again:
                raise BadSampleError(
                    "duplicate", f"{', '.join(sorted(again))} stood further up already: the first counts"
                )
            if apart and key not in self._torn:
                self._torn.add(key)
                raise BadSampleError("interleaved", "other samples stand between its members")
            if not apart:
                self._found.places.append(self._place(key, members))
        except BadSampleError as bad:
            self._fault(bad.kind, key, bad.detail)

    def _fault(self, kind: str, key: str, detail: str) -> None:
        self._found.faults.append(Fault(kind, self._shard, key, detail))

    def _place(self, key: str, members: dict[str, Span]) -> Place:
        ending = next((e for e in members if e in FORMATS), None)
        if ending is None:
            raise BadSampleError("no_image", f"none of {', '.join(FORMATS)}, only {', '.join(members)}")
        told = json_of(self._content(members, "json"))
        condition = members.get(CONDITION)
        return Place(
            key=key,
            span=members[ending],
            check=self._hash(members[ending]),
            format=FORMATS[ending],
            label=label_of(self._content(members, "cls"), told, self._label),
            condition=None if condition is None else (condition, self._hash(condition)),
            box=_box(told),
        )

    def _bytes(self, span: Span) -> bytes:
        return self._tar[span[0] : span[0] + span[1]]

    def _content(self, members: dict[str, Span], ending: str) -> bytes | None:
        return self._bytes(members[ending]) if ending in members else None

    def _hash(self, span: Span) -> int:
        return xxh3_64_intdigest(self._bytes(span))


def _box(told: dict[str, object]) -> tuple[float, ...] | None:
    """The box that a sample's JSON tells: four numbers in [0, 1]."""
    box = told.get("box")
    if isinstance(box, list) and len(box) == 4 and all(isinstance(x, int | float) and 0 <= x <= 1 for x in box):
        return tuple(map(float, box))
    return None


class _Members:
    """(name, span) of every plain file in the archive: ustar, GNU's long names, pax.

    A header that cannot be read is a fault, and reading goes on at the next one that can be.
    """

    def __init__(self, tar: mmap.mmap, shard: str, faults: list[Fault]):
        self._tar, self._shard, self._faults = tar, shard, faults

    def _fault(self, kind: str, detail: str) -> None:
        self._faults.append(Fault(kind, self._shard, "", detail))

    def __iter__(self) -> Iterator[tuple[str, Span]]:
        at, end, long_name = 0, len(self._tar), ""
        while at + BLOCK <= end:
            header = self._tar[at : at + BLOCK]
            if not header.rstrip(b"\0"):
                return
            size = _size(header)
            if size is None:
                self._fault("damaged", f"no tar header at byte {at}")
                at = self._next_header(at + BLOCK)
                continue
            offset, kind = at + BLOCK, header[_KIND]
            if offset + size > end:
                self._fault("cut", f"the member at byte {at} should reach to {offset + size}, the file to {end}")
                return
            if kind == b"L":
                long_name = _text(self._tar[offset : offset + size])
            elif kind == b"x":
                long_name = _pax_path(self._tar[offset : offset + size])
            else:
                if kind in b"0\0":
                    yield long_name or _name(header), (offset, size)
                long_name = ""
            at = offset + -(-size // BLOCK) * BLOCK
        self._fault("cut", f"the file ends at byte {end} without an end of archive")

    def _next_header(self, at: int) -> int:
        """Where the next header with a right checksum (or the end) is."""
        while at + BLOCK <= len(self._tar):
            header = self._tar[at : at + BLOCK]
            if header[_MAGIC] == b"ustar" and _size(header) is not None:
                return at
            at += BLOCK
        return at


def _size(header: bytes) -> int | None:
    """The size of the member's content; None where this is no header."""
    try:
        told = int(header[_SUM].strip(b" \0") or b"-1", 8)
        if told != sum(header) - sum(header[_SUM]) + 8 * 32:
            return None
        digits = header[_SIZE]
        if digits[0] & 0x80:  # base 256, above 8 GiB
            return int.from_bytes(digits[1:], "big")
        return int(digits.strip(b" \0") or b"0", 8)
    except ValueError:
        return None


def _name(header: bytes) -> str:
    name, prefix = _text(header[_NAME]), _text(header[_PREFIX])
    return f"{prefix}/{name}" if prefix and header[_MAGIC] == b"ustar" and header[262:263] != b" " else name


def _pax_path(content: bytes) -> str:
    """The path among pax records (``LENGTH key=value``), empty where there is none."""
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
