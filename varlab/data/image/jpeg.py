"""JPEG files by libjpeg-turbo (simplejpeg): their size, orientation and pixels, and one verdict on files with warnings."""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

import simplejpeg
from PIL import Image

from varlab.data.faults import BadSampleError
from varlab.data.image.depth import U8

__all__ = ["JPEG_END", "JPEG_START", "MALFORMED", "jpeg_header", "jpeg_orientation", "jpeg_pixels", "mended"]

JPEG_START, JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"

_MARKER = struct.Struct(">HH").unpack_from
_SCAN, _END, _JFIF, _NOTE = 0xFFDA, 0xFFD9, 0xFFE0, 0xFFE1
_SEQUENTIAL = {0xFFC0, 0xFFC1}  # kinds of frames that have no progression
_WITH_LENGTH = frozenset(range(0xFFC0, 0xFFFF)) - set(range(0xFFD0, 0xFFDA))
_NOT_LOST = ("extraneous bytes", "SOS parameters", "JFIF revision", "Adobe color", "progression sequence", "ICC marker")
_MOST_SCANS = 200  # encoders make 10
_ORIENTATION = (b"\x01\x12\x00", b"\x12\x01", b"tiff:Orientation")  # the tag in both byte orders, and in XMP

_PLAIN_ERRORS = (OSError, ValueError, SyntaxError, LookupError, TypeError, ArithmeticError, EOFError, RuntimeError)
MALFORMED = (*_PLAIN_ERRORS, AttributeError, AssertionError, struct.error, zlib.error)
"""What Pillow raises over damaged bytes, in any of its readers."""


def jpeg_header(encoded: bytes) -> tuple[int, int, str] | None:
    """(H, W) as stored, and the colour space; None if libjpeg-turbo does not know such a file.

    Raises:
        BadSampleError: it has so many scans that decoding would take hours.
    """
    if encoded.count(b"\xff\xda") > _MOST_SCANS:
        raise BadSampleError("corrupt", f"more than {_MOST_SCANS} scans: each would decode all pixels again")
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded, strict=False)
    except (ValueError, KeyError):  # KeyError: colours or a layout that it has no name for
        return None
    return height, width, colours


def jpeg_orientation(encoded: bytes) -> int:
    """EXIF's orientation, or else XMP's, 1 … 8; 1 (upright) if the file states none."""
    notes = [encoded[start + 4 : end] for marker, start, end in _segments(encoded) if marker == _NOTE]
    notes = [note for note in notes if any(tag in note for tag in _ORIENTATION)]
    for note in notes:
        if note.startswith(b"Exif\0\0") and (orientation := _exif_orientation(note)):
            return orientation
    xmp = next(filter(None, (re.search(rb'tiff:Orientation(?:="|>)([1-8])', note) for note in notes)), None)
    return int(xmp[1]) if xmp else 1


def jpeg_pixels(encoded: bytes, colours: str, least: tuple[int, int]) -> tuple[U8, bool]:
    """Decode to ``img_HWC`` in those colours, at the smallest eighth of the size that reaches ``least`` (H, W).

    Also return whether the file has warnings. It is usable if all of its data is there.

    Raises:
        BadSampleError: data is missing or damaged. ValueError: libjpeg-turbo cannot decode such a file.
    """
    try:
        return _decode(encoded, colours, least), False
    except ValueError as e:
        first = e
    whole = mended(encoded)
    for candidate in (whole, whole + JPEG_END):
        try:
            return _decode(candidate, colours, least), True
        except ValueError as e:
            error = str(e)
        if not error.startswith("Premature end of JPEG"):  # only the end mark may be missing
            break
    if candidate is not whole or (error.startswith(("Premature", "Corrupt")) and not _is_harmless(error)):
        raise BadSampleError("corrupt", f"no whole JPEG image: {first}")
    return _decode(whole, colours, least, strict=False), True


def mended(encoded: bytes) -> bytes:
    """The file without the faults that make libjpeg warn before the first scan: none of them concerns a pixel."""
    parts, end, sequential = [encoded[:2]], 2, False
    for marker, start, after in _segments(encoded):
        part, end = encoded[start:after], after
        sequential |= marker in _SEQUENTIAL
        if marker == _SCAN and sequential:
            part = part[:-3] + b"\x00\x3f\x00"  # all coefficients, the only choice
        elif marker == _JFIF and part[4:9] == b"JFIF\0":
            part = part[:9] + b"\x01" + part[10:]  # the revision
        parts.append(part)
    return b"".join([*parts, encoded[end:]])


def _segments(encoded: bytes) -> Iterator[tuple[int, int, int]]:
    """(marker, first byte, byte after the last) of each segment up to the first scan, whatever lies between them."""
    at, last = 2, len(encoded) - 4
    while 0 <= at <= last:
        marker, length = _MARKER(encoded, at)
        if marker in _WITH_LENGTH:
            end = at + 2 + length
            yield marker, at, end
            if marker == _SCAN:
                return
            at = end
        elif marker == _END:
            return
        else:
            at = encoded.find(b"\xff", at + 1)


def _decode(encoded: bytes, colours: str, least: tuple[int, int], *, strict: bool = True) -> U8:
    return simplejpeg.decode_jpeg(
        encoded, colours, min_height=least[0], min_width=least[1], min_factor=1, strict=strict
    )


def _is_harmless(warning: str) -> bool:
    return any(text in warning for text in _NOT_LOST)


def _exif_orientation(note: bytes) -> int:
    """0 if it has none that can be read."""
    exif = Image.Exif()
    try:
        exif.load(note)
        orientation = exif.get(0x0112)
    except MALFORMED:
        return 0
    return orientation if isinstance(orientation, int) and 1 <= orientation <= 8 else 0
