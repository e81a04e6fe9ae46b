"""Write a shard: a plain ustar archive, and the record of each sample in it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from tarfile import BLOCKSIZE, RECORDSIZE, USTAR_FORMAT, TarInfo
from types import TracebackType

from xxhash import xxh3_64_intdigest

from varlab.data.format.index import Shard
from varlab.data.format.table import CONDITION, FORMATS, SampleRecord, Span

__all__ = ["ShardWriter"]

_BUFFER = 1 << 20  # bytes

# tarfile needs 15 times as long for a header: only name, size and checksum differ, the checksum's field counts as spaces
_HEADER = TarInfo().tobuf(USTAR_FORMAT)
_BEFORE_SIZE, _AFTER_SIZE, _AFTER_SUM = _HEADER[100:124], _HEADER[136:148], _HEADER[156:]
_PLAIN_SUM = sum(_BEFORE_SIZE + _AFTER_SIZE + b" " * 8 + _AFTER_SUM)


class ShardWriter:
    """Writes samples into a tar. Equal samples give equal bytes on any machine: owner, group and time are 0.

    A context manager: without an error, its end completes the archive and syncs it to disk.

    Raises:
        OSError: the disk refused.
    """

    def __init__(self, path: Path):
        self._file = path.open("wb", buffering=_BUFFER)
        self._hash = hashlib.sha256()
        self._at = 0
        self.records: list[SampleRecord] = []

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                # the end mark is two empty blocks, and archives are whole records
                self._write(bytes(2 * BLOCKSIZE + -(self._at + 2 * BLOCKSIZE) % RECORDSIZE))
                self._file.flush()
                os.fsync(self._file.fileno())

    def add(self, key: str, members: Iterable[tuple[str, bytes]], *, label: int, box: tuple[float, ...] | None) -> None:
        """Write a sample, given as the ending and the content of each member."""
        parts: list[bytes] = []
        spans: dict[str, Span] = {}
        at = self._at
        for ending, content in members:
            padding = -len(content) % BLOCKSIZE
            parts += (_header(f"{key}.{ending}", len(content)), content, bytes(padding))
            spans[ending] = Span(at + BLOCKSIZE, len(content), xxh3_64_intdigest(content))
            at += BLOCKSIZE + len(content) + padding
        self._write(b"".join(parts))
        ending = next(e for e in spans if e in FORMATS)
        self.records.append(SampleRecord(key, spans[ending], FORMATS[ending], label, spans.get(CONDITION), box))

    def shard(self, name: str) -> Shard:
        """The entry of the closed shard in an index."""
        return Shard(name, len(self.records), self._at, self._hash.hexdigest())

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._hash.update(content)
        self._at += len(content)


def _header(name: str, size: int) -> bytes:
    """The ustar header of a plain file, mode 644."""
    encoded, digits = name.encode(), b"%011o\0" % size
    total = b"%06o\0 " % (_PLAIN_SUM + sum(encoded) + sum(digits))
    return b"".join((encoded.ljust(100, b"\0"), _BEFORE_SIZE, digits, _AFTER_SIZE, total, _AFTER_SUM))
