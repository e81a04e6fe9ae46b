"""PNG files without their texts and colour profiles, whose size must not decide whether the pixels can be read."""

from __future__ import annotations

import struct
import zlib

from varlab.data.faults import BadSampleError

__all__ = ["PNG_START", "check_png", "without_texts"]

PNG_START = b"\x89PNG\r\n\x1a\n"

_DROPPED = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_ORIENTED = (b"Raw profile type exif\0", b"XML:com.adobe.xmp\0")  # texts that can hold an orientation
_MOST = 1 << 20  # bytes of such a text; Pillow reads no longer ones


def check_png(encoded: bytes) -> None:
    """Compare the checksums of a PNG's chunks, all but its texts: Pillow decodes flipped bits without a word.

    Other files pass.

    Raises:
        BadSampleError: a checksum differs, or the pixels are cut.
    """
    at = len(PNG_START) if encoded.startswith(PNG_START) else len(encoded)
    while at + 12 <= len(encoded):
        kind, end = encoded[at + 4 : at + 8], at + 12 + struct.unpack_from(">I", encoded, at)[0]
        if kind not in _DROPPED and (end <= len(encoded) or kind == b"IDAT"):
            stated = int.from_bytes(encoded[end - 4 : end], "big")
            if end > len(encoded) or zlib.crc32(memoryview(encoded)[at + 4 : end - 4]) != stated:
                raise BadSampleError("corrupt", f"the checksum of its chunk {kind!r} at byte {at} is wrong")
        if kind == b"IEND":
            return
        at = end


def without_texts(encoded: bytes) -> bytes:
    """Drop the chunks of text and the colour profile, except those that may hold an orientation."""
    parts, kept, at = list[bytes](), 0, len(PNG_START)
    while at + 12 <= len(encoded):
        kind, end = encoded[at + 4 : at + 8], at + 12 + struct.unpack_from(">I", encoded, at)[0]
        if kind in _DROPPED and not _is_oriented(encoded[at + 8 : end - 4]):
            parts.append(encoded[kept:at])
            kept = end
        at = end
    return b"".join([*parts, encoded[kept:]]) if parts else encoded


def _is_oriented(text: bytes) -> bool:
    """Whether a text may hold an orientation, and is short enough for Pillow."""
    if not text.startswith(_ORIENTED) or len(text) > _MOST:
        return False
    start = text.find(b"\x78", text.index(b"\0"))  # of a deflated stream, if it is deflated
    try:
        return len(zlib.decompressobj().decompress(text[start:], _MOST + 1)) <= _MOST
    except zlib.error:
        return True
