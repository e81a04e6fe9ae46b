"""One header of a tar: v7, ustar, star, GNU's or pax. tarfile's parser is four times slower, and stops at damage."""

from __future__ import annotations

import re
from typing import NamedTuple

__all__ = ["BLOCK", "ZEROS", "Header", "padded", "pax_records", "read_header", "text_of"]

BLOCK = 512
"""Bytes of a header; the content of a member is padded to a multiple."""

ZEROS = bytes(BLOCK)
"""A block of an archive's end mark, which has two; or of the padding after it."""

_CHECKSUM = slice(148, 156)
_OCTAL = re.compile(rb"[ \0]*([0-7]*)[ \0]*")
_USED = (b"path", b"linkpath", b"size", b"GNU.sparse.name")
_SPARSE = b"GNU.sparse."


class Header(NamedTuple):
    """Name, type flag, size of the content, and link target, as the header's own fields give them.

    has_map: further blocks of a GNU sparse file's map follow.
    """

    name: bytes
    kind: bytes
    size: int
    link: bytes
    has_map: bool


def read_header(block: bytes) -> Header | None:
    """The header in a block of 512 bytes; None if it is none: its checksum is wrong, or a number cannot be read."""
    checksum = block[_CHECKSUM]
    total, size = _octal(checksum), _number(block[124:136])
    plain = sum(block) - sum(checksum) + 8 * 32
    if size < 0 or (total != plain and total != plain - 256 * _high(block)):  # old writers add signed bytes
        return None
    kind, name = block[156:157], _until_zero(block[:100])
    if block[345] and block[257:263] == b"ustar\0":
        # star writes times into the last bytes of the prefix
        name = _until_zero(block[345 : 476 if block[508:511] == b"tar" else 500]) + b"/" + name
    link = _until_zero(block[157:257]) if kind in b"12" else b""
    return Header(name, kind, size, link, kind == b"S" and block[482] != 0)


def pax_records(content: bytes) -> dict[bytes, bytes] | None:
    """The records (``LENGTH key=value``) of a pax header that say where a member is; None if any of them is damaged."""
    records, at, end = dict[bytes, bytes](), 0, len(content.rstrip(b"\0"))
    while at < end:
        digits, _, _ = content[at : at + 20].partition(b" ")
        length = int(digits) if digits.isdigit() else 0
        record = content[at : at + length]
        key, equals, value = record[len(digits) + 1 : -1].partition(b"=")
        if not length or len(record) != length or not record.endswith(b"\n") or not equals:
            return None
        if key in _USED:
            records[key] = value
        elif key.startswith(_SPARSE):  # one stands for all: a header may hold a million of them
            records[_SPARSE] = b""
        at += length
    return records


def text_of(name: bytes) -> str:
    r"""A name as text: bytes that are no UTF-8 become ``\xNN``. Different names give different texts."""
    if b"\\x" in name:
        name = name.replace(b"\\x", b"\\x5cx")
    return name.decode("utf-8", "backslashreplace")


def padded(size: int) -> int:
    """The bytes that a content of that size takes."""
    return -(-size // BLOCK) * BLOCK


def _number(digits: bytes) -> int:
    """Octal digits; or, where 8 GiB or more do not fit, base 256. -1 for a negative number, and for none."""
    if digits[0] & 0x80:
        return -1 if digits[0] & 0x40 else int.from_bytes(digits, "big") & (1 << 95) - 1
    return _octal(digits)


def _octal(digits: bytes) -> int:
    """The number in a field, 0 in an empty one; -1 if it holds anything but octal digits, such as a sign."""
    found = _OCTAL.fullmatch(digits)
    return int(found[1] or b"0", 8) if found else -1


def _high(block: bytes) -> int:
    """The bytes above 127, the checksum aside."""
    return sum(byte > 127 for byte in block[:148] + block[156:])


def _until_zero(field: bytes) -> bytes:
    end = field.find(b"\0")
    return field if end < 0 else field[:end]
