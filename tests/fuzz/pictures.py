"""Pictures as people have them, and the pixels that anybody would see in them."""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, PngImagePlugin

__all__ = ["BROKEN", "KINDS", "Picture", "draw", "expected"]

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Picture:
    """An encoded picture. img_HW3: what it shows, None for none. deep_HW: its values if they are more than bytes."""

    encoded: bytes
    ending: str
    img_HW3: Pixels | None
    deep_HW: NDArray[np.generic] | None = None
    tolerance: float = 7.0


_EDGE = 12.0  # where a sharp edge lies half a pixel elsewhere, because one crops before and the other after resizing


def expected(picture: Picture, size: int, depths: dict[str, int]) -> Pixels:
    """The middle square at a size, as 8 bits. depths: the bits of integers and of floats in the picture's set."""
    img_HW3 = picture.img_HW3
    if picture.deep_HW is not None:
        values = picture.deep_HW.astype(np.float64)
        grey = values * 255 if picture.deep_HW.dtype.kind == "f" else values / 2 ** (depths["integer"] - 8)
        img_HW3 = np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, axis=2)
    assert img_HW3 is not None
    image = Image.fromarray(img_HW3)
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return np.asarray(image.crop((left, top, left + side, top + side)).resize((size, size), Image.Resampling.LANCZOS))


def _scene(number: int) -> Pixels:
    """A smooth picture that no other number has."""
    height, width = 17 + number * 7 % 12, 17 + number * 5 % 12
    y, x = np.mgrid[0:height, 0:width] / 32
    shades = [number * 37 % 101 / 125, number * 61 % 103 / 125, number * 17 % 107 / 125]
    channels = [shades[0] + 0.15 * x, shades[1] + 0.15 * y, shades[2] + 0.1 * (x - y)]
    return (np.stack(channels, axis=-1) * 255).clip(0, 255).astype(np.uint8)


def _encode(image: Image.Image, form: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def _jpeg(img_HW3: Pixels, **options: object) -> bytes:
    return _encode(Image.fromarray(img_HW3), "JPEG", quality=95, subsampling=0, **options)


def _plain(form: str, ending: str, **options: object) -> Callable[[int], Picture]:
    return lambda number: Picture(_encode(Image.fromarray(_scene(number)), form, **options), ending, _scene(number))


def _jpg(number: int) -> Picture:
    return Picture(_jpeg(_scene(number)), "jpg", _scene(number))


def _grey(number: int) -> Picture:
    grey = _scene(number)[..., 0]
    return Picture(_encode(Image.fromarray(grey), "PNG"), "png", np.repeat(grey[..., None], 3, axis=2))


def _turned(number: int) -> Picture:
    """A JPEG on its side, that EXIF turns upright."""
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.ascontiguousarray(np.rot90(_scene(number), 1))
    return Picture(_jpeg(stored, exif=exif), "jpg", _scene(number))


def _alpha(number: int) -> Picture:
    """Mostly transparent over black: white is seen, and one opaque half."""
    img = _scene(number)
    alpha = np.zeros(img.shape[:2], np.uint8)
    alpha[: len(alpha) // 2] = 255
    seen = np.where(alpha[..., None] == 255, img, 255).astype(np.uint8)
    stored = np.dstack([np.where(alpha[..., None] == 255, img, 0), alpha]).astype(np.uint8)
    return Picture(_encode(Image.fromarray(stored), "PNG"), "png", seen, tolerance=_EDGE)


def _palette(number: int) -> Picture:
    """A palette whose colour 0 is transparent."""
    img = _scene(number)
    indices = np.zeros(img.shape[:2], np.uint8)
    indices[: len(indices) // 2] = 1
    colour = img[0, 0]
    image = Image.fromarray(indices, "P")
    image.putpalette([0, 0, 0, *map(int, colour)])
    seen = np.where(indices[..., None] == 1, colour, 255).astype(np.uint8)
    return Picture(_encode(image, "PNG", transparency=0), "png", seen, tolerance=_EDGE)


def _deep(number: int, largest: int) -> Picture:
    values = (_scene(number)[..., 0].astype(np.float64) / 255 * largest).astype(np.uint16)
    values[0, 0] = largest
    return Picture(_encode(Image.fromarray(values), "PNG"), "png", None, values)


def _float(number: int) -> Picture:
    values = (_scene(number)[..., 0] / 255).astype(np.float32)
    values[0, 0] = 1.0
    return Picture(_encode(Image.fromarray(values), "TIFF"), "tif", None, values)


def _long_text(number: int) -> Picture:
    """As programs write them that paint pictures: the workflow is in a compressed text."""
    info = PngImagePlugin.PngInfo()
    info.add_text("workflow", "x" * 3_000_000, zip=True)
    return Picture(_encode(Image.fromarray(_scene(number)), "PNG", pnginfo=info), "png", _scene(number))


def _cmyk(number: int) -> Picture:
    image = Image.fromarray(_scene(number)).convert("CMYK")
    encoded = _encode(image, "JPEG", quality=95, subsampling=0)
    return Picture(encoded, "jpg", np.asarray(image.convert("RGB")), tolerance=16)


def _warned(number: int) -> Picture:
    """Extraneous bytes, with which every viewer shows it."""
    encoded = _jpeg(_scene(number))
    at = encoded.index(b"\xff\xdb")
    return Picture(encoded[:at] + b"\0\0" + encoded[at:], "jpg", _scene(number))


def _misnamed(number: int) -> Picture:
    return Picture(_encode(Image.fromarray(_scene(number)), "PNG"), "jpg", _scene(number))


def _bilevel(number: int) -> Picture:
    black = np.zeros((20, 20), bool)
    black[: 3 + number % 15] = True
    image = Image.fromarray(np.where(black, 0, 255).astype(np.uint8)).convert("1", dither=Image.Dither.NONE)
    return Picture(_encode(image, "PNG"), "png", np.asarray(image.convert("RGB")))


def _strip(number: int) -> Picture:
    """A thousand times as wide as high."""
    img = np.full((1, 20_000, 3), _scene(number)[0, 0], np.uint8)
    return Picture(_encode(Image.fromarray(img), "PNG"), "png", img)


KINDS: dict[str, Callable[[int], Picture]] = {
    "jpg": _jpg,
    "png": _plain("PNG", "png"),
    "webp": _plain("WEBP", "webp", lossless=True),
    "bmp": _plain("BMP", "bmp"),
    "jfif": lambda number: Picture(_jpeg(_scene(number)), "jfif", _scene(number)),
    "grey": _grey,
    "turned": _turned,
    "transparent": _alpha,
    "palette": _palette,
    "16 bits": lambda number: _deep(number, 65_535),
    "12 bits": lambda number: _deep(number, 4_095),
    "float": _float,
    "long text": _long_text,
    "CMYK": _cmyk,
    "extraneous bytes": _warned,
    "misnamed": _misnamed,
    "bilevel": _bilevel,
    "strip": _strip,
}


@cache
def _huge() -> bytes:
    return _encode(Image.new("1", (14_000, 14_000)), "PNG")


BROKEN: dict[str, Callable[[int], Picture]] = {
    "cut": lambda number: Picture(_jpeg(_scene(number))[:300], "jpg", None),
    "empty": lambda number: Picture(b"", "jpg", None),
    "no picture": lambda number: Picture(b"<html>404 not found</html>" * 9, "jpg", None),
    "huge": lambda number: Picture(_huge(), "png", None),
}
"""What cannot be used, and must be named."""


def draw(kind: str, number: int) -> Picture:
    """A picture of a kind; each number has its own colours."""
    return (KINDS | BROKEN)[kind](number)
