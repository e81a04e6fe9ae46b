"""Encoded bytes to pixels: JPEG by libjpeg-turbo (simplejpeg), the rest by Pillow. A damaged image is always an error."""

from __future__ import annotations

import io
import struct

import cv2
import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from varlab.data.faults import BadSampleError
from varlab.data.image.crop import Box, BoxOf

__all__ = ["U8", "UNREADABLE", "crop_into", "decode", "decode_into", "header"]

U8 = NDArray[np.uint8]

UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)
"""What Pillow raises over a damaged or huge file."""

_DIRECT = ("Gray", "YCbCr")  # colour spaces that simplejpeg converts to RGB exactly as Pillow does


def decode(encoded: bytes, form: str, *, most_pixels: int, least: tuple[int, int] | None = None) -> U8:
    """Decode to img_HW3 in RGB; grey is repeated, transparency dropped.

    form: Pillow's name of the format. least: an (H, W) that suffices; a much larger JPEG is decoded at the smallest eighth of
    its size that reaches it.

    Raises:
        BadSampleError: corrupt, or too_large: more than ``most_pixels`` (known from the header, before decoding).
    """
    if form == "JPEG":
        height, width, colours = _jpeg_header(encoded)
        _check_size(height, width, most_pixels)
        if colours in _DIRECT:
            return _jpeg(encoded, least)
    try:
        with Image.open(io.BytesIO(encoded), formats=[form]) as image:
            _check_size(image.height, image.width, most_pixels)
            return np.asarray(image.convert("RGB"))
    except UNREADABLE as e:
        raise _bad(e, form) from e


def decode_into(
    out_HW3: U8, encoded: bytes, form: str, box_of: BoxOf, *, most_pixels: int
) -> tuple[float, float, float, float]:
    """Decode an image no larger than needed, and write the part that ``box_of`` chooses into ``out_HW3`` at its size.

    Returns the part as shares of the image (top, left, bottom, right).

    Raises:
        BadSampleError: corrupt, or too_large.
    """
    height, width = header(encoded, form)
    if not height * width:
        raise BadSampleError("corrupt", f"its header says {width}×{height} pixels")
    box = box_of(height, width)
    least = -(-height * out_HW3.shape[0] // box.height), -(-width * out_HW3.shape[1] // box.width)
    img_HW3 = decode(encoded, form, most_pixels=most_pixels, least=least)
    crop_into(out_HW3, img_HW3, box.scaled((height, width), (img_HW3.shape[0], img_HW3.shape[1])))
    return box.shares(height, width)


def crop_into(out_HW3: U8, img_HW3: U8, box: Box) -> None:
    """Write a part of an image into ``out_HW3``, at its size: average areas where it shrinks, else interpolate."""
    part = img_HW3[box.top : box.bottom, box.left : box.right]
    size = out_HW3.shape[1], out_HW3.shape[0]
    if (box.width, box.height) == size:
        out_HW3[...] = part
        return
    shrinks = box.width > size[0] and box.height > size[1]
    cv2.resize(part, size, dst=out_HW3, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def header(encoded: bytes, form: str) -> tuple[int, int]:
    """(H, W) from the file's header. Raises BadSampleError where it cannot be read."""
    if form == "JPEG":
        height, width, _ = _jpeg_header(encoded)
        return height, width
    if form == "PNG" and encoded[12:16] == b"IHDR" and len(encoded) >= 24:
        width, height = struct.unpack(">II", encoded[16:24])
        return height, width
    try:
        with Image.open(io.BytesIO(encoded), formats=[form]) as image:
            return image.height, image.width
    except UNREADABLE as e:
        raise _bad(e, form) from e


def _bad(error: Exception, form: str) -> BadSampleError:
    if isinstance(error, Image.DecompressionBombError):
        return BadSampleError("too_large", str(error))
    return BadSampleError("corrupt", f"no {form} image: {error}")


def _jpeg_header(encoded: bytes) -> tuple[int, int, str]:
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError as e:
        raise _bad(e, "JPEG") from e
    return height, width, colours


def _jpeg(encoded: bytes, least: tuple[int, int] | None) -> U8:
    height, width = least or (0, 0)
    try:
        return simplejpeg.decode_jpeg(encoded, "RGB", min_height=height, min_width=width, min_factor=1)
    except ValueError as e:
        raise BadSampleError("corrupt", f"no whole JPEG image: {e}") from e


def _check_size(height: int, width: int, most_pixels: int) -> None:
    if height * width > most_pixels:
        raise BadSampleError("too_large", f"{width}×{height} pixels, over data.most_pixels={most_pixels}")
