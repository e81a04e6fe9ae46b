"""Open image files, and bring images to a size: cover (H, W), then take the centre."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from varlab.data.faults import BadSampleError
from varlab.data.image.decode import UNREADABLE, decode, header
from varlab.errors import VarlabError

__all__ = ["Fit", "cover", "format_of", "open_image", "pixels", "resampling"]

_MAGIC = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG"}
_CHECKS = ("decode", "header")


class Fit:
    """Turn the bytes of any image that Pillow reads into what a shard stores.

    size: bring the shorter side to it, then take the centre ``size`` × ``size``. A PNG, JPEG or WebP that already has this
    size is stored byte for byte. None stores every PNG, JPEG and WebP byte for byte, at its own size.
    check: how to check bytes that are stored unchanged. ``decode`` decodes each image; ``header`` reads only its size.
    """

    def __init__(self, *, size: int | None, resample: str, check: str):
        if check not in _CHECKS:
            raise VarlabError(f"check={check} is unknown: use {' or '.join(_CHECKS)}.")
        self._filter, self._check = resampling(resample), check
        self.image_size = None if size is None else (size, size)
        """(H, W) of every result; None where sizes differ."""

    def __call__(self, encoded: bytes) -> Image.Image | bytes:
        """Return an image of mode L or RGB, or the bytes unchanged.

        Raises:
            BadSampleError: the image cannot be read.
        """
        form = format_of(encoded)
        if form is not None and self._check == "header" and self.image_size is None:
            header(encoded, form)
            return encoded
        with _bad_if_unreadable(), Image.open(io.BytesIO(encoded)) as image:
            if form is not None and self._is_stored_unchanged(image):
                decode(encoded, form, most_pixels=Image.MAX_IMAGE_PIXELS or 1 << 30)
                return encoded
            upright = _upright(image)
        return upright if self.image_size is None else cover(upright, self.image_size, self._filter)

    def _is_stored_unchanged(self, image: Image.Image) -> bool:
        if self.image_size is None:
            return True
        turned = image.getexif().get(0x0112, 1) != 1  # EXIF orientation
        plain = image.mode in ("L", "RGB") and "transparency" not in image.info
        return plain and not turned and image.size == self.image_size and getattr(image, "n_frames", 1) == 1


def format_of(encoded: bytes) -> str | None:
    """PNG, JPEG or WEBP by the first bytes; None for anything else."""
    for magic, form in _MAGIC.items():
        if encoded.startswith(magic):
            return form
    return "WEBP" if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP" else None


def open_image(file: Path, *, background: str = "white") -> Image.Image:
    """Open an image in mode L or RGB: turned as EXIF says, transparency laid over ``background``, 16-bit grey in 8 bits.

    Raises:
        BadSampleError: the file cannot be decoded.
    """
    with _bad_if_unreadable(), Image.open(file) as image:
        return _upright(image, background)


def cover(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """Resize an image until it just covers ``size`` (H, W), then take its centre."""
    height, width = size
    ratio = max(width / image.width, height / image.height)
    wide, high = max(width, round(image.width * ratio)), max(height, round(image.height * ratio))
    left, upper = (wide - width) // 2, (high - height) // 2
    return image.resize((wide, high), resample).crop((left, upper, left + width, upper + height))


def pixels(image: Image.Image) -> Tensor:
    """An image as ``img_u8_CHW``; C is 1 in mode L, 3 in mode RGB."""
    img_u8_HWC = torch.from_numpy(np.array(image)).view(image.height, image.width, -1)
    return img_u8_HWC.permute(2, 0, 1)


def resampling(name: str) -> Image.Resampling:
    """Pillow's filter of that name (bilinear, bicubic, lanczos …).

    Raises:
        VarlabError: Pillow has no such filter.
    """
    try:
        return Image.Resampling[name.upper()]
    except KeyError:
        known = ", ".join(r.name.lower() for r in Image.Resampling)
        raise VarlabError(f"There is no resampling filter {name!r}: choose one of {known}.") from None


@contextmanager
def _bad_if_unreadable() -> Iterator[None]:
    try:
        yield
    except UNREADABLE as e:
        raise BadSampleError("corrupt", f"cannot be decoded ({e})") from e


def _upright(image: Image.Image, background: str = "white") -> Image.Image:
    """Mode L or RGB."""
    image = ImageOps.exif_transpose(image)
    if image.mode in ("L", "RGB"):
        if "transparency" not in image.info:
            return image
    elif image.mode == "1":
        return image.convert("L")
    elif image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, background), rgba).convert("RGB")
    return image.convert("RGB")
