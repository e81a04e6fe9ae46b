"""Writing one shard: a plain ustar archive, and the place of every sample in it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

from xxhash import xxh3_64_intdigest

from varlab.data.format.index import Shard
from varlab.data.format.tar import BLOCK, CONDITION, FORMATS, Place, Span

__all__ = ["ShardWriter"]

_BUFFER = 1 << 20


class ShardWriter:
    """Samples into a tar, whose bytes say nothing of this machine or hour: owner, group and time are 0.

    A context manager; leaving it without an error ends the archive and has it safe on the disk.

    Raises:
        OSError: it could not be written.
    """

    def __init__(self, path: Path):
        self._path = path
        self._file: BinaryIO = path.open("wb", buffering=_BUFFER)
        self._hash = hashlib.sha256()
        self._at = 0
        self.places: list[Place] = []

    def __enter__(self) -> ShardWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                self._write(bytes(-(self._at + 2 * BLOCK) % (20 * BLOCK) + 2 * BLOCK))  # tar's own record size
                self._file.flush()
                os.fsync(self._file.fileno())

    def add(self, key: str, members: Iterable[tuple[str, bytes]], *, label: int, box: tuple[float, ...] | None) -> None:
        """One sample: the ending and the content of each of its members."""
        parts: list[bytes] = []
        spans: dict[str, tuple[Span, int]] = {}
        at = self._at
        for ending, content in members:
            padding = -len(content) % BLOCK
            parts += (_header(f"{key}.{ending}", len(content)), content, bytes(padding))
            spans[ending] = (at + BLOCK, len(content)), xxh3_64_intdigest(content)
            at += BLOCK + len(content) + padding
        self._write(b"".join(parts))
        ending = next(e for e in spans if e in FORMATS)
        span, check = spans[ending]
        self.places.append(Place(key, span, check, FORMATS[ending], label, spans.get(CONDITION), box))

    def shard(self, name: str) -> Shard:
        """What the index says of it, once it is closed."""
        return Shard(name, len(self.places), self._at, self._hash.hexdigest())

    def _write(self, content: bytes) -> None:
        self._file.write(content)
        self._hash.update(content)
        self._at += len(content)


def _template() -> bytes:
    """The header of a plain file without name, size and checksum."""
    fields = (
        bytes(100),
        *(b"%07o\x00" % number for number in (0o644, 0, 0)),  # mode, owner, group
        bytes(12),
        b"%011o\x00" % 0,  # time
        b" " * 8,  # stands for the checksum in its own sum
        b"0".ljust(101, b"\x00"),
        b"ustar\x00" + b"00",
    )
    return b"".join(fields).ljust(BLOCK, b"\x00")


_TEMPLATE = _template()
_TEMPLATE_SUM = sum(_TEMPLATE)


def _header(name: str, size: int) -> bytes:
    """A ustar header of a plain file, mode 644."""
    encoded, told = name.encode(), b"%011o\x00" % size
    total = _TEMPLATE_SUM + sum(encoded) + sum(told)
    rest = (_TEMPLATE[100:124], told, _TEMPLATE[136:148], b"%06o\x00 " % total, _TEMPLATE[156:])
    return b"".join((encoded.ljust(100, b"\x00"), *rest))
