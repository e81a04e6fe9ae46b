"""Encoded bytes to pixels: JPEG by libjpeg-turbo (simplejpeg), the rest by Pillow. Nothing damaged passes for an image."""

from __future__ import annotations

import io
import struct

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from varlab.data.faults import BadSampleError

__all__ = ["decode", "header"]

U8 = NDArray[np.uint8]
_DIRECT = ("Gray", "YCbCr")  # colour spaces that simplejpeg brings to RGB as Pillow does, to the last bit
_UNREADABLE = (OSError, ValueError, SyntaxError, EOFError)


def decode(encoded: bytes, form: str, *, most_pixels: int, least: tuple[int, int] | None = None) -> U8:
    """img_HW3 in RGB (grey is repeated, transparency dropped).

    form: Pillow's name of the format. least: (H, W) that suffice: a much larger JPEG is decoded at the smallest of its
    eighths that reaches them.

    Raises:
        BadSampleError: corrupt, or too_large (more than ``most_pixels``; told from the header, before anything is decoded).
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
    except Image.DecompressionBombError as e:
        raise BadSampleError("too_large", str(e)) from e
    except _UNREADABLE as e:
        raise BadSampleError("corrupt", f"no {form} image: {e}") from e


def header(encoded: bytes, form: str) -> tuple[int, int]:
    """(H, W) as the file's header tells. BadSampleError where there is none."""
    if form == "JPEG":
        height, width, _ = _jpeg_header(encoded)
        return height, width
    if form == "PNG" and encoded[12:16] == b"IHDR" and len(encoded) >= 24:
        width, height = struct.unpack(">II", encoded[16:24])
        return height, width
    try:
        with Image.open(io.BytesIO(encoded), formats=[form]) as image:
            return image.height, image.width
    except Image.DecompressionBombError as e:
        raise BadSampleError("too_large", str(e)) from e
    except _UNREADABLE as e:
        raise BadSampleError("corrupt", f"no {form} image: {e}") from e


def _jpeg_header(encoded: bytes) -> tuple[int, int, str]:
    try:
        height, width, colours, _ = simplejpeg.decode_jpeg_header(encoded)
    except ValueError as e:
        raise BadSampleError("corrupt", f"no JPEG image: {e}") from e
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
