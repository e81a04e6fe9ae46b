"""The part of an encoded image that is trained on: decoded no larger than needed, cut out, and brought to size."""

from __future__ import annotations

import cv2

from varlab.data.image.crop import Box, BoxOf
from varlab.data.image.depth import U8
from varlab.data.image.picture import PixelRules, open_picture

__all__ = ["U8", "crop_into", "decode", "decode_into"]


def decode(encoded: bytes, rules: PixelRules) -> U8:
    """Decode to img_HW3 in RGB, as ``open_picture`` does.

    Raises:
        BadSampleError: corrupt; too_large; bad_values.
    """
    return open_picture(encoded, rules).decode().img_HW3


def decode_into(out_HW3: U8, encoded: bytes, box_of: BoxOf, rules: PixelRules) -> tuple[float, float, float, float]:
    """Decode an image no larger than needed, and write the part that ``box_of`` chooses into ``out_HW3`` at its size.

    Returns the part as shares of the upright image (top, left, bottom, right).

    Raises:
        BadSampleError: corrupt; too_large; bad_values.
    """
    picture = open_picture(encoded, rules)
    height, width = picture.size
    box = box_of(height, width)
    least = -(-height * out_HW3.shape[0] // box.height), -(-width * out_HW3.shape[1] // box.width)
    img_HW3 = picture.decode(least).img_HW3
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
