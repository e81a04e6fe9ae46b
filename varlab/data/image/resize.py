"""What becomes of an encoded image on its way into a shard: stored as it is, or brought to a size."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageOps

from varlab.data.faults import BadSampleError
from varlab.data.image.decode import decode, header
from varlab.data.pack.sources.base import resampling
from varlab.errors import VarlabError

__all__ = ["UNREADABLE", "Fit", "fit", "format_of", "opaque"]

UNREADABLE = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)  # bad files, to Pillow
_MAGIC = {b"\xff\xd8\xff": "JPEG", b"\x89PNG\r\n\x1a\n": "PNG"}
_CHECKS = ("decode", "header")


class Fit:
    """Bytes of any image that Pillow reads into what a shard holds.

    size: shorter side brought to it, then the centre ``size`` × ``size``; a PNG, JPEG or WebP that already has it goes in
    byte for byte. None keeps every PNG, JPEG and WebP byte for byte, and its size. check: how bytes that are kept are looked
    at: ``decode`` decodes each whole, ``header`` reads its size and trusts the rest.
    """

    def __init__(self, *, size: int | None, resample: str, check: str):
        if check not in _CHECKS:
            raise VarlabError(f"check={check} is unknown: use {' or '.join(_CHECKS)}.")
        self.size, self._filter, self._check = size, resampling(resample), check

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(H, W) of all that comes out."""
        return None if self.size is None else (self.size, self.size)

    def __call__(self, encoded: bytes) -> Image.Image | bytes:
        """Mode L or RGB, or the bytes as they were.

        Raises:
            BadSampleError: what cannot be read.
        """
        form = format_of(encoded)
        if form is not None and self._check == "header" and self.size is None:
            header(encoded, form)
            return encoded
        try:
            with Image.open(io.BytesIO(encoded)) as image:
                if self._kept(image, form):
                    decode(encoded, str(form), most_pixels=Image.MAX_IMAGE_PIXELS or 1 << 30)
                    return encoded
                whole = opaque(ImageOps.exif_transpose(image))
                return whole if self.size is None else fit(whole, size=self.size, resample=self._filter)
        except UNREADABLE as e:
            raise BadSampleError("corrupt", f"cannot be decoded ({e})") from e

    def _kept(self, image: Image.Image, form: str | None) -> bool:
        if form is None or self.size is None:
            return form is not None
        turned = image.getexif().get(0x0112, 1) != 1  # EXIF orientation
        plain = image.mode in ("L", "RGB") and "transparency" not in image.info
        return plain and not turned and image.size == (self.size, self.size) and getattr(image, "n_frames", 1) == 1


def format_of(encoded: bytes) -> str | None:
    """PNG, JPEG or WEBP by the first bytes; None for anything else."""
    for magic, form in _MAGIC.items():
        if encoded.startswith(magic):
            return form
    return "WEBP" if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP" else None


def opaque(image: Image.Image) -> Image.Image:
    """Mode L or RGB: transparency is laid over white, and 16-bit grey keeps its upper 8 bits."""
    if image.mode in ("L", "RGB"):
        if "transparency" not in image.info:
            return image
    elif image.mode == "1":
        return image.convert("L")
    elif image.mode.startswith("I"):
        return Image.fromarray((np.asarray(image).astype(np.int64).clip(0, 65535) >> 8).astype(np.uint8))
    if "A" in image.mode or "a" in image.mode or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def fit(image: Image.Image, *, size: int, resample: Image.Resampling) -> Image.Image:
    """Shorter side to ``size`` pixels, then the centre ``size`` × ``size``."""
    ratio = size / min(image.size)
    width, height = (max(size, round(side * ratio)) for side in image.size)
    left, upper = (width - size) // 2, (height - size) // 2
    return image.resize((width, height), resample).crop((left, upper, left + size, upper + size))
