"""Bring images to a size: cover (H, W), and take the centre."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from varlab.data.image.depth import Deep, Depths, describe_depths
from varlab.data.image.jpeg import JPEG_START
from varlab.data.image.picture import WARNED, EncodedPicture, Picture, PixelRules, open_picture, read_named_picture
from varlab.data.image.png import PNG_START, check_png
from varlab.errors import VarlabError

__all__ = [
    "STORED",
    "WRONG_ENDING",
    "Fit",
    "Fitted",
    "centre_of_file",
    "cover",
    "format_of",
    "is_wrong_ending",
    "pixels",
    "resampling",
    "whole_size",
]

log = logging.getLogger(__name__)

STORED: Mapping[str, str] = {"PNG": "png", "JPEG": "jpg", "WEBP": "webp"}
"""The formats that a shard stores unchanged, and the endings that it gives them."""

WRONG_ENDING = "under the ending of another format"
"""What the log counts, beside the steps of decoding."""

_CHECKS = ("decode", "header")
_WIDEST = 16  # times the pixels of its centre: a resized image with more is not made, only its centre


class Fitted(NamedTuple):
    """What a shard stores of an image: an image of mode L or RGB, or the file's own bytes. The rest is as in ``Picture``."""

    image: Image.Image | bytes
    steps: tuple[str, ...] = ()
    deep: Deep | None = None


class Fit:
    """Turn the bytes of any image that Pillow reads into what a shard stores.

    size: bring the shorter side to it, then take the centre ``size`` × ``size``. A PNG, JPEG or WebP that already has this
    size and needs nothing else is stored byte for byte. None stores every PNG, JPEG and WebP byte for byte, at its own size.
    whole: keep the whole picture, whose shorter side is ``size``.
    check: how to check bytes that are stored unchanged. ``decode`` decodes each image; ``header`` reads only its size.
    """

    def __init__(self, *, size: int | None, resample: str, check: str, rules: PixelRules, whole: bool = False):
        if check not in _CHECKS:
            raise VarlabError(f"check={check} is unknown: use {' or '.join(_CHECKS)}.")
        self._filter, self._check, self.rules = resampling(resample), check, rules
        self._shorter = size if whole else None
        self._kept = size is None  # every image at its own size
        self.image_size = None if size is None or whole else (size, size)
        """(H, W) of every result; None where sizes differ."""

    def __call__(self, encoded: bytes, name: str = "") -> Fitted:
        """Fit one image. name: of its file; an ending of another format is counted.

        Raises:
            BadSampleError: the image cannot be read, or is too large.
        """
        check_png(encoded)
        picture = open_picture(encoded, self.rules)
        ending = (WRONG_ENDING,) * is_wrong_ending(name, picture.form)
        if self._check == "header" and self._kept and picture.form in STORED:
            return Fitted(encoded, ending)
        decoded = picture.decode()
        steps = decoded.steps + ending
        if self._is_stored_unchanged(picture, decoded):
            return Fitted(encoded, steps, decoded.deep)
        image = decoded.image()
        size = self.image_size if self._shorter is None else whole_size(image.width, image.height, self._shorter)
        fitted = image if size is None else cover(image, size, self._filter)
        return Fitted(fitted, steps, decoded.deep)

    def with_depths(self, depths: Depths) -> Fit:
        """The same, for images that hold values of these depths."""
        other = copy(self)
        other.rules = replace(self.rules, depths=depths)
        return other

    def _is_stored_unchanged(self, encoded: EncodedPicture, decoded: Picture) -> bool:
        if encoded.form not in STORED or self._kept:
            return encoded.form in STORED
        done = set(decoded.steps) - {WARNED}
        right = encoded.size == self.image_size if self._shorter is None else min(encoded.size) == self._shorter
        return right and decoded.mode in ("L", "RGB") and not done


def format_of(encoded: bytes) -> str | None:
    """One of ``STORED`` by the first bytes; None for anything else."""
    if encoded.startswith(JPEG_START):
        return "JPEG"
    if encoded.startswith(PNG_START):
        return "PNG"
    return "WEBP" if encoded[:4] == b"RIFF" and encoded[8:12] == b"WEBP" else None


def is_wrong_ending(name: str, form: str) -> bool:
    """Whether a file's name ends as those of another format do."""
    usual = Image.registered_extensions().get(PurePath(name).suffix.lower(), form)
    return usual != form and {usual, form} != {"JPEG", "MPO"}


def whole_size(width: int, height: int, shorter: int) -> tuple[int, int]:
    """(H, W) of a picture whose shorter side becomes ``shorter``, the other rounded down as in torchvision.

    Of a strip that is longer than 16 times its width, it is the size of the middle."""
    longer = min(int(shorter * max(width, height) / min(width, height)), _WIDEST * shorter)
    return (shorter, longer) if width >= height else (longer, shorter)


def cover(image: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    """Resize an image until it just covers ``size`` (H, W), and take its centre; of a narrow strip, only that is resized."""
    height, width = size
    ratio = max(width / image.width, height / image.height)
    wide, high = max(width, round(image.width * ratio)), max(height, round(image.height * ratio))
    left, upper = (wide - width) // 2, (high - height) // 2
    if wide * high <= _WIDEST * width * height:
        return image.resize((wide, high), resample).crop((left, upper, left + width, upper + height))
    x, y = image.width / wide, image.height / high
    right, lower = min((left + width) * x, image.width), min((upper + height) * y, image.height)
    return image.resize((width, height), resample, box=(left * x, upper * y, right, lower))


def centre_of_file(
    file: Path, size: tuple[int, int], resample: Image.Resampling, rules: PixelRules, *, setting: str, mode: str = "RGB"
) -> tuple[Tensor, tuple[int, int]]:
    """The centre of an image file at that (H, W), ``img_u8_CHW``; and the (H, W) of the whole, upright.

    setting: the key that named the file, for messages. mode: RGB, or L.

    Raises:
        VarlabError: the file cannot be used.
    """
    picture = read_named_picture(file, rules, setting)
    if picture.deep is not None:
        kind, bits = picture.deep
        log.info("%s: scaled to 8 bits from %s (depth=)", file, describe_depths({kind: rules.depths.get(kind, bits)}))
    image = picture.image().convert(mode)
    return pixels(cover(image, size, resample)), (image.height, image.width)


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
