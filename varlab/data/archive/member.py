"""The members of a tar to the file's end: each byte belongs to a member, to an end mark, or to a damage that is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from varlab.data.archive.header import BLOCK, ZEROS, Header, padded, pax_records, read_header, text_of
from varlab.data.archive.name import has_firm_end
from varlab.data.archive.tape import Extent, Tape

__all__ = ["HARD_LINK", "PLAIN", "SYMBOLIC_LINK", "Damage", "Member", "Members"]

PLAIN, HARD_LINK, SYMBOLIC_LINK = b"0", b"1", b"2"
"""Type flags of members; PLAIN stands for those of all plain files."""

_PLAIN = (b"0", b"\0", b"7")  # a file; the same in v7; a contiguous file
_FOLDERS, _LABELS = b"5D", b"VA"  # labels: of a volume, or access rights
_BODILESS = b"123456"  # links, devices, folders, pipes: their size says nothing in most tars
_EXTENDED, _LONG_NAME, _LONG_LINK, _GLOBAL = b"LKxXg", b"L", b"K", b"g"
_LONGEST = 1 << 23  # bytes of a long name or a pax header; more is damage
_MOST_LOST = 1 << 29  # bytes without a header, after which the rest is given up: a stream may have no end
_LONGEST_NAME = 1 << 10  # bytes: every row of a table has room for the longest key

_RECORD = 10240  # bytes of a record, which the padding after an end mark fills up
_LARGE_RECORDS = [1 << n for n in range(14, 23)]  # of tar -b


@dataclass(frozen=True)
class Damage:
    """Bytes of a tar that are no member: kind of the fault, what exactly, how many bytes, and at least so many samples."""

    kind: str
    detail: str
    bytes: int
    least: int = 1


class Member(NamedTuple):
    """A member that is no folder. kind: its type flag, PLAIN for a plain file. link: the name in a link. part: which archive
    of the file it belongs to, where several lie one behind another."""

    name: str
    kind: bytes
    content: Extent
    link: str
    part: int

    @property
    def is_plain(self) -> bool:
        """Whether it is a whole file: no link, no device, no file with holes."""
        return self.kind == PLAIN


class Members:
    """Walks through a tar of any writer to the end of the file, also through damage and from archive to archive.

    note: receives each damage. part: the number of archives that ended so far, with another behind them.
    """

    def __init__(self, tape: Tape, *, note: Callable[[Damage], None]):
        self._tape, self._note = tape, note
        self._pax: dict[bytes, bytes] = {}  # what extended headers say about the next member
        self._global: dict[bytes, bytes] = {}  # and about all that follow
        self._any_extended = self._name_is_lost = False
        self._last: Member | None = None
        self._part_at = 0
        self.part = 0

    def __iter__(self) -> Iterator[Member]:
        at: int | None = 0
        while at is not None:
            block = self._tape.block(at)
            if block == ZEROS:
                at = self._after_zeros(at)
            elif len(block) < BLOCK:
                at = self._cut(f"the file ends at byte {at + len(block)} without an end of archive")
            elif (header := read_header(block)) is None:
                at = self._after_damage(at, at)
            elif header.kind in _EXTENDED:
                at = self._extend(at, header)
            else:
                member, at = self._member(at, header)
                if member is not None:
                    self._last = member
                    yield member

    # -- members -------------------------------------------------------------------------------------------------------

    def _member(self, at: int, header: Header) -> tuple[Member | None, int | None]:
        """The member whose header is there, None for a folder; and the offset after it, None at the end."""
        is_lost, pax = False, self._global
        if self._pax or self._name_is_lost:
            is_lost, pax = not self._pax, {**self._global, **self._pax}
            self._pax, self._name_is_lost = {}, False
        name = text_of((pax and (pax.get(b"GNU.sparse.name") or pax.get(b"path"))) or header.name)
        kind, start = _kind(header.kind, name, pax), at + BLOCK
        size = header.size if kind == PLAIN and not pax else self._size(start, header, pax)
        start = self._after_map(start) if header.has_map else start
        content = self._tape.content(start, size, name if kind == PLAIN else None)
        if content is None:
            return None, self._cut(
                f"the member at byte {at} should end at byte {start + size}, but the file ends before"
            )
        after = start + padded(size)
        if is_lost:
            self._note(Damage("damaged", f"the name of the member at byte {at} is lost with a header", after - at))
        if is_lost or kind in _FOLDERS or kind in _LABELS:
            return None, after
        link = text_of(pax.get(b"linkpath") or header.link) if header.link else ""
        return Member(name, kind, content, link, self.part), after

    def _size(self, start: int, header: Header, pax: Mapping[bytes, bytes]) -> int:
        """The bytes of the content that starts there."""
        stated = pax.get(b"size", b"")
        size = int(stated) if stated.isdigit() and len(stated) < 20 else header.size
        return 0 if size and header.kind in _BODILESS and self._is_boundary(start) else size

    def _extend(self, at: int, header: Header) -> int | None:
        """Take up what a long name or a pax header says; return the offset after it."""
        start = at + BLOCK
        if header.size > _LONGEST:
            return self._after_damage(at, at)
        text = self._tape.take(start, header.size)
        if len(text) < header.size:
            return self._cut(f"the header at byte {at} should end at byte {start + header.size}, the file ends before")
        if header.kind in (_LONG_NAME, _LONG_LINK):
            name = text.split(b"\0", 1)[0]
            records: dict[bytes, bytes] | None = {b"path" if header.kind == _LONG_NAME else b"linkpath": name}
        else:
            records = pax_records(text)
        if records is None or any(len(value) > _LONGEST_NAME for value in records.values()):
            self._lost(Damage("damaged", f"the names in the header at byte {at} cannot be read", 0, least=0), name=True)
        else:
            (self._global if header.kind == _GLOBAL else self._pax).update(records)
        self._any_extended = self._any_extended or header.kind != _GLOBAL
        return start + padded(header.size)

    def _after_map(self, start: int) -> int:
        """The offset after the further blocks of a GNU sparse file's map."""
        while len(block := self._tape.block(start)) == BLOCK and block[504]:
            start += BLOCK
        return start + BLOCK

    def _is_boundary(self, at: int) -> bool:
        """Whether a header, an end mark or the end of the file is there."""
        block = self._tape.block(at)
        return len(block) < BLOCK or block == ZEROS or read_header(block) is not None

    # -- all else ------------------------------------------------------------------------------------------------------

    def _cut(self, detail: str) -> int | None:
        """Note that the file ends too early."""
        self._note(Damage("cut", detail, 0))
        return None

    def _lost(self, damage: Damage, *, name: bool) -> None:
        """Note a damage before other members. name: the long name of the next one may have been in it."""
        self._note(damage)
        self._pax, self._name_is_lost = {}, name

    def _after_zeros(self, first: int) -> int | None:
        """The offset of the next archive behind an end mark, None at the end. Zeros that are no end mark are a damage."""
        at = self._tape.after_zeros(first, first + _MOST_LOST)
        if at - first >= _MOST_LOST:
            return self._cut(f"{_MOST_LOST} bytes from byte {first} on are zeros, and what follows is not read")
        block = self._tape.block(at)
        if not block.strip(b"\0"):
            self._check_end(first, at + len(block))
            return None
        if len(block) < BLOCK or (header := read_header(block)) is None:
            return self._after_damage(first, at)
        if self._is_end_mark(first, at):
            self.part += 1
        else:
            damage = Damage("damaged", f"bytes {first} to {at} are zeros, members lie behind them", at - first, least=0)
            # a name that fills its field, or has signs replaced, may be the rest of a longer one
            is_short = len(header.name) < 100 and b"?" not in header.name
            self._lost(damage, name=self._any_extended and not is_short)
        self._part_at = at
        return at

    def _after_damage(self, first: int, at: int) -> int | None:
        """The offset of the next header, None if there is none. What lies before it is a damage; at: its first non-zero."""
        behind_end = at - first >= 2 * BLOCK
        block, last = self._tape.block(at), at
        while (
            len(block) == BLOCK
            and at - first < _MOST_LOST
            and (block == ZEROS or read_header(block) is None or at == last == first)
        ):
            at += BLOCK
            last = last if block == ZEROS else at
            block = self._tape.block(at)
        if at - first >= _MOST_LOST:
            return self._cut(f"no tar header in {_MOST_LOST} bytes from byte {first} on, and what follows is not read")
        if len(block) == BLOCK:
            end = last if at > last and self._is_end_mark(last, at) else at
            self._lost(
                Damage("damaged", f"no tar header from byte {first} to {at}", end - first), name=self._any_extended
            )
            self._part_at = at
            return at
        last = at + len(block) if block.strip(b"\0") else last
        if behind_end:
            self._note(
                Damage("damaged", f"bytes {first} to {last}, behind the end of the archive, are none", last - first, 0)
            )
        else:
            self._note(Damage("damaged", f"no tar header from byte {first} to {last}", last - first))
        return None

    def _check_end(self, first: int, end: int) -> None:
        """Zeros to the end of the file: an end mark and its padding, or what a file system left of lost bytes."""
        detail, zeros = f"bytes {first} to {end}, the end of the file, are zeros", end - first
        if self._breaks_off():
            self._note(Damage("cut", f"{detail}, and so is the end of the member before them", zeros))
        elif zeros >= _RECORD + 2 * BLOCK:
            is_record = any(end % r == 0 and zeros <= r + BLOCK for r in _LARGE_RECORDS)
            self._note(
                Damage(
                    "cut", f"{detail}: more than an end of archive has", 0 if is_record else zeros, int(not is_record)
                )
            )

    def _is_end_mark(self, first: int, end: int) -> bool:
        """Whether zeros before a header are the end mark of one archive, with its padding, before another."""
        if self._breaks_off():
            return False
        zeros, record_ends = end - first, (end, end - self._part_at)
        if zeros == BLOCK:
            return True
        return any(zeros <= r + BLOCK and any(at % r == 0 for at in record_ends) for r in (_RECORD, *_LARGE_RECORDS))

    def _breaks_off(self) -> bool:
        """Whether the content of the last member ends in zeros, as no text and hardly an image does."""
        last = self._last
        if last is None or not last.is_plain or last.content.size < 2 or not has_firm_end(last.name):
            return False
        return self._tape.tail(last.content, 2) == bytes(2)


def _kind(flag: bytes, name: str, pax: Mapping[bytes, bytes]) -> bytes:
    """The type flag of a member, PLAIN for all plain files."""
    if pax and any(key.startswith(b"GNU.sparse.") for key in pax):
        return b"S"
    if flag in _PLAIN:
        return b"5" if name.endswith("/") else PLAIN  # a folder in v7
    return flag
