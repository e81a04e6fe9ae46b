"""Seals: weights and checkpoints carry a digest of their own content, which is compared when they are read.

The digest is part of the file, so that no kill can part the two: in the header of safetensors, with zeros in its own place
while it is computed; in the comment of a checkpoint's zip, over all that comes before it. It is there against damage and not
against people, who could change it, too; so it is xxh3, which costs a tenth of SHA-256, the seal of earlier files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import FileIO
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import safetensors.torch
from torch import Tensor
from xxhash import xxh3_128

from varlab.errors import VarlabError

__all__ = ["MARKS", "Parts", "SealedFile", "check_seal", "lost_digest", "sealed_tensors"]

Parts: TypeAlias = Iterable[bytes | memoryview]
"""Bytes one after another."""


@dataclass(frozen=True)
class _Seal:
    """A kind of digest. mark: its name in a file. digits: of its hexadecimal form."""

    mark: str
    digits: int
    hash: Callable[[], Any]

    @property
    def in_header(self) -> bytes:
        return f'"{self.mark}":"'.encode()

    @property
    def in_comment(self) -> bytes:
        return f"{self.mark}=".encode()

    @property
    def comment(self) -> int:
        """Bytes of the comment."""
        return len(self.in_comment) + self.digits

    @property
    def blank(self) -> bytes:
        return b"0" * self.digits


_NEW = _Seal("varlab_xxh3", 32, xxh3_128)
_SEALS = (_NEW, _Seal("varlab_sha256", 64, hashlib.sha256))
MARKS = tuple(seal.mark for seal in _SEALS)
_LAST = b"\n"  # ends the header of sealed weights, far from the digest; other writers end it with spaces
_NO_COMMENT = bytes(2)  # the end of a zip without a comment: its length
_CHUNK = 1 << 18
_LARGEST_HEADER = 100_000_000  # of safetensors


def sealed_tensors(tensors: dict[str, Tensor], metadata: dict[str, str]) -> tuple[bytes, memoryview]:
    """The sealed safetensors file of some tensors: its header, and the rest."""
    data = memoryview(safetensors.torch.save(tensors))
    length = 8 + int.from_bytes(data[:8], "little")
    # the library would write the metadata in an order of its own, another one in each file
    named = json.dumps({_NEW.mark: _NEW.blank.decode()} | metadata, separators=(",", ":")).encode()
    rest = bytes(data[9:length]).strip()
    header = b'{"__metadata__":' + named + (b"" if rest == b"}" else b",") + rest
    header += b" " * (-(len(header) + 1) % 8) + _LAST
    head = len(header).to_bytes(8, "little") + header
    digest = _digest([head, data[length:]], _NEW)
    return head.replace(_NEW.in_header + _NEW.blank, _NEW.in_header + digest, 1), data[length:]


class SealedFile:
    """A binary file to which ``torch.save`` writes a zip, and which then gets the digest as its comment."""

    def __init__(self, file: BinaryIO):
        self._file, self._digest = file, _NEW.hash()

    def write(self, data: bytes) -> int:
        """Write and count in."""
        self._digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        """Put the digest into the zip's comment. The file itself stays open."""
        self._file.seek(-len(_NO_COMMENT), 2)
        self._file.write(_NEW.comment.to_bytes(2, "little") + _NEW.in_comment + self._digest.hexdigest().encode())
        self._file.flush()


def check_seal(path: Path, name: Path | None = None, rest: Parts | None = None) -> bool:
    """Whether a file carries its digest. Raises VarlabError if its content is another than was written.

    name: of the file in the message, where that differs. rest: what lies below the header of weights, if that is read
    elsewhere; it is used where the digest is in that header.
    """
    with path.open("rb", buffering=0) as file:
        size = file.seek(0, 2)
        header = _header(file, size)
        rest = _read(file, len(header), size) if rest is None else rest
        both = (_in_comment(file, size, seal) or _in_header(header, rest, seal) for seal in _SEALS)
        digests = next(filter(None, both), None)
    if digests is None:
        if header.endswith(_LAST):
            raise lost_digest(name or path)
        return False
    written, found = digests
    if written != found:
        raise VarlabError(
            f"{name or path} does not hold what varlab wrote (truncated or damaged): its digest is {found.decode()[:12]}…, "
            f"not {written.decode('latin-1')[:12]!a}…. Copy it again from where it came, or remove it and run the command "
            "again that made it."
        )
    return True


def lost_digest(path: Path) -> VarlabError:
    """The error about a file that was written with a digest and has none."""
    return VarlabError(f"{path} has lost the digest that varlab wrote into it (truncated or damaged): remove it.")


def _in_comment(file: FileIO, size: int, seal: _Seal) -> tuple[bytes, bytes] | None:
    """The digest in the comment of a zip, and that of the file as it was before; None without such a comment."""
    file.seek(max(size - seal.comment, 0))
    tail = file.read(seal.comment)
    if not tail.startswith(seal.in_comment):
        return None
    before = _read(file, 0, size - seal.comment - len(_NO_COMMENT))
    return tail[len(seal.in_comment) :], _digest(chain(before, [_NO_COMMENT]), seal)


def _in_header(header: bytes, rest: Parts, seal: _Seal) -> tuple[bytes, bytes] | None:
    """The digest in a header of safetensors, and that of the file with zeros in its place; None without such an entry."""
    place = header.find(seal.in_header) + len(seal.in_header)
    if place < len(seal.in_header):
        return None
    end = place + seal.digits
    return header[place:end], _digest(chain([header[:place], seal.blank, header[end:]], rest), seal)


def _header(file: FileIO, size: int) -> bytes:
    """The length and the header of a safetensors file; empty for another file."""
    file.seek(0)
    length = 8 + int.from_bytes(file.read(8), "little")
    file.seek(0)
    return file.read(length) if length <= min(size, _LARGEST_HEADER) else b""


def _read(file: FileIO, start: int, end: int) -> Iterator[memoryview]:
    """A part of a file, in pieces that are valid until the next one is asked for."""
    file.seek(start)
    buffer = memoryview(bytearray(_CHUNK))
    while start < end and (count := file.readinto(buffer[: end - start])):
        yield buffer[:count]
        start += count


def _digest(parts: Parts, seal: _Seal) -> bytes:
    digest = seal.hash()
    for part in parts:
        digest.update(part)
    return str(digest.hexdigest()).encode()
