"""Which part of an image of any size becomes the square (or other) picture that is trained on: on uint8, before batching."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from varlab.errors import VarlabError
from varlab.rng import Stream

__all__ = ["Box", "Centre", "Crop", "RandomCrop", "RandomResizedCrop", "cut", "draws"]

U8 = NDArray[np.uint8]

Box = tuple[int, int, int, int]
"""top, left, height, width in pixels of the image."""


class Crop(Protocol):
    """Chooses the box that is cut out and brought to the size (H, W) that is trained on.

    aspect: width / height that is wanted. u: as many uniform numbers in [0, 1) as are asked for.
    """

    def box(self, height: int, width: int, aspect: float, u: Sequence[float]) -> Box: ...


class Centre:
    """The largest box of the wanted aspect, in the middle: evaluation, and training without variation."""

    def box(self, height: int, width: int, aspect: float, u: Sequence[float]) -> Box:
        """Draws nothing."""
        h, w = _largest(height, width, aspect)
        return (height - h) // 2, (width - w) // 2, h, w


class RandomCrop:
    """A box of 1/``enlarge`` of the largest one's side, anywhere: VAR's training crop (1.125), without storing enlarged
    images. Images stored at 1.125 times the size are cut without resampling."""

    def __init__(self, *, enlarge: float):
        if enlarge < 1:
            raise VarlabError(f"crop.enlarge is {enlarge}, but a crop is no larger than its image: set at least 1.")
        self._enlarge = enlarge

    def box(self, height: int, width: int, aspect: float, u: Sequence[float]) -> Box:
        """Uniform over the places."""
        h, w = (max(1, round(side / self._enlarge)) for side in _largest(height, width, aspect))
        return int(u[0] * (height - h + 1)), int(u[1] * (width - w + 1)), h, w


class RandomResizedCrop:
    """A box of random area and aspect (Szegedy et al. 2015), as torchvision draws it: ten tries, then the centre.

    scale: smallest and largest share of the image's area. ratio: the same of width / height, drawn evenly in its logarithm,
    relative to the wanted aspect.
    """

    TRIES = 10

    def __init__(self, *, scale: tuple[float, float], ratio: tuple[float, float]):
        if not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
            raise VarlabError(f"crop.scale={list(scale)}, ratio={list(ratio)}: give two rising numbers, scale up to 1.")
        self.scale, self.ratio = (scale[0], scale[1]), (ratio[0], ratio[1])
        self._log_ratio = (math.log(ratio[0]), math.log(ratio[1]))

    def box(self, height: int, width: int, aspect: float, u: Sequence[float]) -> Box:
        """Uniform over the places of the first box that fits."""
        for first in range(0, 4 * self.TRIES, 4):
            area = height * width * _between(self.scale, u[first])
            ratio = aspect * math.exp(_between(self._log_ratio, u[first + 1]))
            h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < h <= height and 0 < w <= width:
                return int(u[first + 2] * (height - h + 1)), int(u[first + 3] * (width - w + 1)), h, w
        return Centre().box(height, width, aspect, u)


def draws(stream: Stream) -> list[Sequence[float]]:
    """For each id of a stream as many uniform numbers as a choice asks for."""
    return [_Drawn(first, stream, row) for row, first in enumerate(stream.uniform(_FIRST).tolist())]


_FIRST = 12  # uniform numbers that nearly every choice of a crop can do with: three tries


class _Drawn(Sequence[float]):
    """The uniform numbers of one image, those after the first few drawn only if they are asked for."""

    def __init__(self, first: list[float], draws: Stream, row: int):
        self._numbers, self._draws, self._row = first, draws, row

    def __len__(self) -> int:
        return len(self._numbers)

    def __getitem__(self, i: Any) -> Any:
        while i >= len(self._numbers):  # a longer draw begins with the same numbers
            more = self._draws.only(self._row).uniform(4 * len(self._numbers))
            self._numbers = more[0].tolist()
        return self._numbers[i]


def cut(img_HW3: U8, box: Box, out_HW3: U8) -> None:
    """Write the box, brought to the size of ``out_HW3``, into it: areas averaged where it shrinks, else bilinear."""
    top, left, h, w = box
    part = img_HW3[top : top + h, left : left + w]
    size = out_HW3.shape[1], out_HW3.shape[0]
    if (w, h) == size:
        out_HW3[...] = part
        return
    way = cv2.INTER_AREA if w > size[0] and h > size[1] else cv2.INTER_LINEAR
    cv2.resize(part, size, dst=out_HW3, interpolation=way)


def _between(ends: tuple[float, float], u: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * u


def _largest(height: int, width: int, aspect: float) -> tuple[int, int]:
    """(h, w) of the largest box of an aspect."""
    if width > height * aspect:
        return height, max(1, min(width, round(height * aspect)))
    return max(1, min(height, round(width / aspect))), width
