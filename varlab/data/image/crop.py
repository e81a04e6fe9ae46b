"""Choose the part of an image that is trained on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import NamedTuple, Protocol

from varlab.errors import VarlabError
from varlab.rng import Stream

__all__ = [
    "Box",
    "BoxOf",
    "Centre",
    "Crop",
    "FiveCrop",
    "RandomCrop",
    "RandomResizedCrop",
    "Uniforms",
    "box_choices",
    "draws",
]


class Box(NamedTuple):
    """A part of an image: rows from top to bottom, columns from left to right, in pixels."""

    top: int
    left: int
    bottom: int
    right: int

    @classmethod
    def at(cls, top: int, left: int, height: int, width: int) -> Box:
        """The box of that size at a place."""
        return cls(top, left, top + height, left + width)

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    def shares(self, height: int, width: int) -> tuple[float, float, float, float]:
        """(top, left, bottom, right) in [0, 1] of an image of that size."""
        return self.top / height, self.left / width, self.bottom / height, self.right / width

    def scaled(self, before: tuple[int, int], after: tuple[int, int]) -> Box:
        """The same part of the image when its (H, W) changes; at least one pixel."""
        if before == after:
            return self
        y, x = after[0] / before[0], after[1] / before[1]
        height, width = max(1, round(self.height * y)), max(1, round(self.width * x))
        top, left = min(round(self.top * y), after[0] - height), min(round(self.left * x), after[1] - width)
        return Box.at(top, left, height, width)


BoxOf = Callable[[int, int], Box]
"""Chooses the part of an image from its height and width."""


class Uniforms(Protocol):
    """As many uniform numbers in [0, 1) as are asked for."""

    def __getitem__(self, i: int, /) -> float: ...


class Crop(Protocol):
    """Chooses the box that is cut out and resized to the (H, W) of training. aspect: width / height of that size."""

    def box(self, height: int, width: int, aspect: float, u: Uniforms) -> Box: ...


class Centre:
    """The largest box of the wanted aspect in the middle: for evaluation, and for training without variation."""

    def box(self, height: int, width: int, aspect: float, u: Uniforms = ()) -> Box:
        """Use no random number."""
        h, w = _largest(height, width, aspect)
        return Box.at((height - h) // 2, (width - w) // 2, h, w)


class RandomCrop:
    """A box with 1/``enlarge`` of the largest box's side, at a random place of the image: VAR's training crop (1.125).

    enlarge: a number, or the smallest and the largest of numbers that are equally likely (LlamaGen's tokenizer: 1 to 1.25). No
    enlarged image is stored. Images stored at 1.125 times the size are cut without resampling.
    """

    def __init__(self, *, enlarge: float | Sequence[float]):
        ends = (enlarge, enlarge) if isinstance(enlarge, int | float) else tuple(enlarge)
        if len(ends) != 2 or not 1 <= ends[0] <= ends[1]:
            raise VarlabError(
                f"crop.enlarge is {enlarge}, but a crop is no larger than its image: set at least 1, or two rising numbers."
            )
        self._enlarge = (float(ends[0]), float(ends[1]))

    def box(self, height: int, width: int, aspect: float, u: Uniforms) -> Box:
        """Uniform over the places."""
        low, high = self._enlarge
        enlarge = low if low == high else _between(self._enlarge, u[2])
        h, w = (max(1, round(side / enlarge)) for side in _largest(height, width, aspect))
        return Box.at(int(u[0] * (height - h + 1)), int(u[1] * (width - w + 1)), h, w)


class FiveCrop:
    """One of the corners, or the middle, of the image's largest centred box (LlamaGen's codes: the ten crops, with flips).

    enlarge: numbers of which one is drawn; the crop has 1/``enlarge`` of that box's side.
    """

    def __init__(self, *, enlarge: Sequence[float]):
        if not enlarge or min(enlarge) < 1:
            raise VarlabError(
                f"crop.enlarge is {enlarge}, but a crop is no larger than its image: list numbers from 1 on."
            )
        self._enlarge = tuple(enlarge)

    def box(self, height: int, width: int, aspect: float, u: Uniforms) -> Box:
        """Each number, and each of the five places, is equally likely."""
        centre = Centre().box(height, width, aspect)
        enlarge = self._enlarge[int(u[0] * len(self._enlarge))]
        h, w = (max(1, round(side / enlarge)) for side in (centre.height, centre.width))
        down, right = ((0, 0), (0, 2), (2, 0), (2, 2), (1, 1))[int(u[1] * 5)]
        top = centre.top + down * (centre.height - h) // 2
        return Box.at(top, centre.left + right * (centre.width - w) // 2, h, w)


class RandomResizedCrop:
    """A box of random area and aspect (Szegedy et al. 2015), drawn as torchvision does: ten attempts, then the centre.

    scale: smallest and largest share of the image's area. ratio: smallest and largest width / height relative to the wanted
    aspect, uniform in the logarithm.
    """

    ATTEMPTS = 10

    def __init__(self, *, scale: tuple[float, float], ratio: tuple[float, float]):
        if not 0 < scale[0] <= scale[1] <= 1 or not 0 < ratio[0] <= ratio[1]:
            raise VarlabError(f"crop.scale={list(scale)}, ratio={list(ratio)}: give two rising numbers, scale up to 1.")
        self.scale, self.ratio = (scale[0], scale[1]), (ratio[0], ratio[1])
        self._log_ratio = (math.log(ratio[0]), math.log(ratio[1]))

    def box(self, height: int, width: int, aspect: float, u: Uniforms) -> Box:
        """Uniform over the places of the first box that fits."""
        for first in range(0, 4 * self.ATTEMPTS, 4):
            area = height * width * _between(self.scale, u[first])
            ratio = aspect * math.exp(_between(self._log_ratio, u[first + 1]))
            h, w = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < h <= height and 0 < w <= width:
                return Box.at(int(u[first + 2] * (height - h + 1)), int(u[first + 3] * (width - w + 1)), h, w)
        return Centre().box(height, width, aspect)


def box_choices(crop: Crop, size: tuple[int, int], draws_B: Iterable[Uniforms]) -> list[BoxOf]:
    """For each row of a batch, how the crop to that (H, W) chooses its box."""
    return [partial(crop.box, aspect=size[1] / size[0], u=u) for u in draws_B]


_FIRST = 12  # uniform numbers that suffice for nearly every choice of a crop: three attempts


def draws(stream: Stream) -> list[Uniforms]:
    """The uniform numbers of each id of a stream."""
    return [_LazyUniforms(first, stream, row) for row, first in enumerate(stream.uniform(_FIRST).tolist())]


class _LazyUniforms:
    """The uniform numbers of one image; those after the first few are drawn when they are needed."""

    def __init__(self, first: list[float], stream: Stream, row: int):
        self._numbers, self._stream, self._row = first, stream, row

    def __getitem__(self, i: int, /) -> float:
        while i >= len(self._numbers):  # a longer draw begins with the same numbers
            self._numbers = self._stream.only(self._row).uniform(4 * len(self._numbers))[0].tolist()
        return self._numbers[i]


def _between(ends: tuple[float, float], u: float) -> float:
    return ends[0] + (ends[1] - ends[0]) * u


def _largest(height: int, width: int, aspect: float) -> tuple[int, int]:
    """(h, w) of the largest box of an aspect."""
    if width > height * aspect:
        return height, max(1, min(width, round(height * aspect)))
    return max(1, min(height, round(width / aspect))), width
