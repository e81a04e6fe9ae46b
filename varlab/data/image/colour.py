"""Pillow's images of any mode as bytes of grey or RGB: transparency laid over a background, deep values scaled."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from varlab.data.image.depth import U8, Deep, Depths, scaled

__all__ = ["ON_BACKGROUND", "SCALED", "flat"]

ON_BACKGROUND, SCALED = "laid over white", "scaled to 8 bits"
"""What ``flat`` can do to an image, as the log counts it."""

_ALPHA = ("LA", "La", "PA", "RGBA", "RGBa")
_GREY_STEPS = {"L;2": 85, "L;4": 17}  # Pillow enlarges such a pixel by this, but not the value that is transparent


def flat(
    image: Image.Image, raw: str, *, background: int, depths: Depths, key: str
) -> tuple[U8, tuple[str, ...], Deep | None]:
    """Convert a loaded image to ``img_HWC``, C = 1 or 3; return what was done, and what it holds if that is not bytes.

    raw: Pillow's name of the layout in the file. background: the grey under transparent parts. key: the setting of
    ``depths``, for messages.

    Raises:
        BadSampleError: deep values that do not fit ``depths``. ValueError: Pillow cannot convert such an image.
    """
    deep, clear_HW = None, _clear(image, raw)
    if image.mode in _ALPHA or (image.mode == "P" and image.has_transparency_data):
        img_HWC, is_clear = _over(image, background)
    elif image.mode == "F" or image.mode.startswith("I"):
        img_HW, deep = scaled(np.asarray(image), depths, key=key)
        img_HWC, is_clear = img_HW[..., None], False
    else:
        img_HWC, is_clear = _opaque(image), False
    if clear_HW is not None and clear_HW.any():
        img_HWC, is_clear = np.where(clear_HW[..., None], np.uint8(background), img_HWC), True
    return img_HWC, (ON_BACKGROUND,) * is_clear + (SCALED,) * (deep is not None), deep


def _clear(image: Image.Image, raw: str) -> NDArray[np.bool_] | None:
    """The pixels of the one value that stands for transparency: tRNS of grey and RGB in PNG."""
    value = image.info.get("transparency")
    if image.mode in ("P", *_ALPHA) or not isinstance(value, int | tuple):
        return None
    pixels = np.asarray(image)
    if pixels.ndim == 2:
        return np.asarray(pixels == np.asarray(value) * _GREY_STEPS.get(raw, 1))
    return np.asarray((pixels == (np.asarray(value) >> (8 if ";16" in raw else 0))).all(-1))


def _over(image: Image.Image, background: int) -> tuple[U8, bool]:
    """The image laid over a grey, and whether any part of it is transparent."""
    rgba = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
    if rgba.getchannel("A").getextrema()[0] == 255:
        return np.asarray(rgba.convert("RGB")), False
    under = Image.new("RGBA", rgba.size, (background, background, background, 255))
    return np.asarray(Image.alpha_composite(under, rgba).convert("RGB")), True


def _opaque(image: Image.Image) -> U8:
    if image.mode in ("L", "1"):
        return np.asarray(image.convert("L"))[..., None]
    if image.mode == "LAB":
        lab, rgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        image = ImageCms.profileToProfile(image, lab, rgb, outputMode="RGB") or image
    return np.asarray(image.convert("RGB"))
