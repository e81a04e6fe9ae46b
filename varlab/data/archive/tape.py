"""The bytes of a tar from first to last: a file in memory, or a stream that cannot go back."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import mmap
import zlib
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple, Protocol, cast

from varlab.data.archive.header import BLOCK, ZEROS

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

__all__ = ["LARGEST", "Extent", "MappedTape", "Readable", "StreamTape", "Tape"]

LARGEST = 1 << 30
"""Bytes of a member that is read; a larger one is no image that could be used."""

_CHUNK = 1 << 18
_ZEROS = bytes(_CHUNK)
_BROKEN = (zlib.error, lzma.LZMAError, OSError, EOFError, ValueError)


class Readable(Protocol):
    """Something that gives its bytes once, in order."""

    def read(self, size: int, /) -> bytes: ...


class Extent(NamedTuple):
    """The content of a member: ``size`` bytes from ``offset`` on. data: what a stream has read of it."""

    offset: int
    size: int
    data: bytes | None = None


class Tape(Protocol):
    """Offsets never fall, except to the block that was read last."""

    def block(self, at: int) -> bytes: ...  # 512 bytes, fewer at the end
    def after_zeros(self, at: int, end: int) -> int: ...  # of the first block that is not all zeros, or behind the end
    def take(self, at: int, size: int) -> bytes: ...  # so many, fewer at the end
    def content(
        self, at: int, size: int, name: str | None
    ) -> Extent | None: ...  # of a member; None if the tape ends before
    def read(self, content: Extent) -> bytes: ...  # all of it; empty if a stream had no need of it
    def head(self, content: Extent, size: int) -> bytes: ...  # its first bytes, likewise
    def tail(self, content: Extent, size: int) -> bytes: ...  # its last bytes, likewise


class MappedTape:
    """A file that is mapped into memory."""

    def __init__(self, tar: mmap.mmap):
        self._tar, self._end = tar, len(tar)

    def block(self, at: int) -> bytes:
        """512 bytes, fewer at the end."""
        return self._tar[at : at + BLOCK]

    def after_zeros(self, at: int, end: int) -> int:
        """In large steps."""
        while at < end and self._tar[at : at + _CHUNK] == _ZEROS:
            at += _CHUNK
        while at < end and self.block(at) == ZEROS:
            at += BLOCK
        return at

    def take(self, at: int, size: int) -> bytes:
        """So many bytes, fewer at the end."""
        return self._tar[at : at + size]

    def content(self, at: int, size: int, name: str | None) -> Extent | None:
        """Where it lies; nothing is read."""
        return Extent(at, size) if at + size <= self._end else None

    def read(self, content: Extent) -> bytes:
        """All of it."""
        return self._tar[content.offset : content.offset + content.size]

    def head(self, content: Extent, size: int) -> bytes:
        """The first bytes."""
        return self._tar[content.offset : content.offset + min(size, content.size)]

    def tail(self, content: Extent, size: int) -> bytes:
        """The last bytes."""
        end = content.offset + content.size
        return self._tar[end - min(size, content.size) : end]


class StreamTape:
    """A stream, unpacked if it is packed with gzip, bzip2 or xz (several parts in a row, too).

    wanted: whether the content of a plain file of that name is to be read. error: what ended the reading early, if anything
    did; the tape ends there.
    """

    def __init__(self, stream: Readable, *, wanted: Callable[[str], bool]):
        self._wanted = wanted
        self._at, self._last = 0, (-1, b"")
        self.error: Exception | None = None
        self._stream: Readable = io.BytesIO()
        self.is_packed = False
        try:
            self._stream, self.is_packed = _unpacked(io.BufferedReader(_Raw(stream), _CHUNK))
        except _BROKEN as e:
            self.error = e

    def block(self, at: int) -> bytes:
        """512 bytes, fewer at the end."""
        if at != self._last[0]:
            self._skip_to(at)
            self._last = at, self._next(BLOCK)
        return self._last[1]

    def after_zeros(self, at: int, end: int) -> int:
        """Block by block: a stream cannot go back."""
        while at < end and self.block(at) == ZEROS:
            at += BLOCK
        return at

    def take(self, at: int, size: int) -> bytes:
        """So many bytes, fewer at the end."""
        first = self._last[1][:size] if at == self._last[0] else b""
        self._skip_to(at)
        return first + self._next(size - len(first))

    def content(self, at: int, size: int, name: str | None) -> Extent | None:
        """Read it if it is wanted, or pass it by."""
        if name is not None and size <= LARGEST and self._wanted(name):
            data = self.take(at, size)
            return Extent(at, size, data) if len(data) == size else None
        self._skip_to(at + size)
        return Extent(at, size, b"") if self._at >= at + size else None

    def read(self, content: Extent) -> bytes:
        """What was read of it."""
        return content.data or b""

    def head(self, content: Extent, size: int) -> bytes:
        """The first bytes."""
        return self.read(content)[:size]

    def tail(self, content: Extent, size: int) -> bytes:
        """The last bytes."""
        return self.read(content)[-size:]

    def _skip_to(self, at: int) -> None:
        while self._at < at and self._next(min(at - self._at, _CHUNK)):
            pass

    def _next(self, size: int) -> bytes:
        """That many bytes, or fewer at the end."""
        parts, missing = [], size
        # a header may state any size: memory is taken for what is there
        while missing and (part := self._part(min(missing, _CHUNK))):
            parts.append(part)
            missing -= len(part)
        self._at += size - missing
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _part(self, size: int) -> bytes:
        """At most that many bytes; none at the end, and from an error on."""
        try:
            return b"" if self.error else self._stream.read(size)
        except _BROKEN as e:
            self.error = e
            return b""


class _Raw(io.RawIOBase):
    """A stream as the buffer of the standard library wants it."""

    def __init__(self, stream: Readable):
        self._source = stream

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer, /) -> int:
        view = memoryview(buffer).cast("B")
        data = self._source.read(len(view))
        view[: len(data)] = data
        return len(data)


def _unpacked(raw: io.BufferedReader) -> tuple[Readable, bool]:
    """The unpacked stream, and whether it was packed."""
    head = raw.peek(6)[:6]
    if head.startswith(b"\x1f\x8b"):
        return cast(Readable, gzip.GzipFile(fileobj=raw, mode="rb")), True
    if head.startswith(b"BZh"):
        return bz2.BZ2File(raw), True
    return (lzma.LZMAFile(raw), True) if head == b"\xfd7zXZ\0" else (raw, False)
