"""Seals: weights and checkpoints carry the SHA-256 of their own content, which is compared when they are read.

The digest is part of the file, so that no kill can part the two: in the header of safetensors, with zeros in its own place
while it is computed; in the comment of a checkpoint's zip, over all that comes before it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import BinaryIO

import safetensors.torch
from torch import Tensor

from varlab.errors import VarlabError

__all__ = ["MARK", "SealedFile", "check_seal", "sealed_tensors"]

MARK = "varlab_sha256"
_BLANK = b"0" * 64
_IN_HEADER = f'"{MARK}":"'.encode()
_IN_COMMENT = f"{MARK}=".encode()
_COMMENT = len(_IN_COMMENT) + len(_BLANK)
_NO_COMMENT = bytes(2)  # the end of a zip without a comment: its length
_CHUNK = 1 << 20
_LARGEST_HEADER = 100_000_000  # of safetensors


def sealed_tensors(tensors: dict[str, Tensor], metadata: dict[str, str]) -> tuple[bytes, memoryview]:
    """The sealed safetensors file of some tensors: its header, and the rest."""
    data = memoryview(safetensors.torch.save(tensors))
    length = 8 + int.from_bytes(data[:8], "little")
    # the library would write the metadata in an order of its own, another one in each file
    named = json.dumps({MARK: _BLANK.decode()} | metadata, separators=(",", ":")).encode()
    rest = bytes(data[9:length]).strip()
    header = b'{"__metadata__":' + named + (b"" if rest == b"}" else b",") + rest
    header += b" " * (-len(header) % 8)
    head = len(header).to_bytes(8, "little") + header
    digest = hashlib.sha256(head)
    digest.update(data[length:])
    return head.replace(_IN_HEADER + _BLANK, _IN_HEADER + digest.hexdigest().encode(), 1), data[length:]


class SealedFile:
    """A binary file to which ``torch.save`` writes a zip, and which then gets the digest as its comment."""

    def __init__(self, file: BinaryIO):
        self._file, self._digest = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        """Write and count in."""
        self._digest.update(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        """Put the digest into the zip's comment. The file itself stays open."""
        self._file.seek(-len(_NO_COMMENT), 2)
        self._file.write(_COMMENT.to_bytes(2, "little") + _IN_COMMENT + self._digest.hexdigest().encode())
        self._file.flush()


def check_seal(path: Path, name: Path | None = None) -> bool:
    """Whether a file carries its digest. Raises VarlabError if its content is another than was written.

    name: of the file in the message, where that differs.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(max(size - _COMMENT, 0))
        tail = file.read()
        if tail.startswith(_IN_COMMENT):
            written, found = tail[len(_IN_COMMENT) :], _digest_of(file, [(0, size - _COMMENT - 2)], _NO_COMMENT)
        else:
            file.seek(0)
            length = min(int.from_bytes(file.read(8), "little"), _LARGEST_HEADER)
            if (at := file.read(length).find(_IN_HEADER)) < 0:
                return False
            at += 8 + len(_IN_HEADER)
            file.seek(at)
            written = file.read(len(_BLANK))
            found = _digest_of(file, [(0, at), (at + len(_BLANK), size)], _BLANK)
    if written != found:
        raise VarlabError(
            f"{name or path} does not hold what varlab wrote (truncated or damaged): its SHA-256 is {found.decode()[:12]}…, "
            f"not {written.decode('latin-1')[:12]!a}…. Copy it again from where it came, or remove it and run the command "
            "again that made it."
        )
    return True


def _digest_of(file: BinaryIO, parts: list[tuple[int, int]], between: bytes) -> bytes:
    """The digest of parts of a file, given bytes after the first one."""
    digest = hashlib.sha256()
    for i, (start, end) in enumerate(parts):
        file.seek(start)
        while start < end and (data := file.read(min(_CHUNK, end - start))):
            digest.update(data)
            start += len(data)
        if i == 0:
            digest.update(between)
    return digest.hexdigest().encode()
