"""Decoded images in memory: the result of a read, reusable buffers, and splits that are kept whole."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from varlab.data.image.decode import U8
from varlab.types import Fault

__all__ = ["Buffers", "ImageCache", "ReadImages"]


@dataclass
class ReadImages:
    """Images of a batch, uint8 ``img_B3HW``; rows that could not be read are black and named in ``faults``.

    box_B4: the part that was cut out, as shares of the image (top, left, bottom, right); None for whole images.
    """

    img_B3HW: Tensor
    faults: dict[int, Fault] = field(default_factory=dict)
    box_B4: Tensor | None = None


class Buffers:
    """Arrays for batches, reused when nothing refers to them: filling old memory is faster than touching new memory."""

    MOST = 4

    def __init__(self) -> None:
        self._arrays: list[U8] = []

    def __getstate__(self) -> dict[str, object]:
        return {"_arrays": []}

    def take(self, shape: tuple[int, ...]) -> U8:
        """An array of that shape with arbitrary content."""
        for array in self._arrays:
            if array.shape == shape and sys.getrefcount(array) == _UNUSED:
                return array
        array = np.empty(shape, dtype=np.uint8)
        self._arrays = [*self._arrays[1 - self.MOST :], array]
        return array


_UNUSED = 3  # references to an array from the list, the loop variable and getrefcount itself


class ImageCache:
    """The decoded images of a split, each kept from its first use on, if all of them fit into ``most_bytes``."""

    def __init__(self, n: int, size: tuple[int, int], most_bytes: int):
        self._n, self._size = n, size
        self._enabled = n * 3 * size[0] * size[1] <= most_bytes
        self._memory: tuple[Tensor, Tensor] | None = None  # the images, and which of them are filled in

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_memory": None}

    def read(self, index_B: Tensor, decode: Callable[[Tensor], ReadImages]) -> ReadImages:
        """Images by number; ``decode`` reads those that are not in memory."""
        if not self._enabled:
            return decode(index_B)
        if self._memory is None:
            images = torch.empty((self._n, 3, *self._size), dtype=torch.uint8)
            self._memory = images, torch.zeros(self._n, dtype=torch.bool)
        img_N3HW, filled_N = self._memory
        missing = torch.unique(index_B[~filled_N[index_B]])
        bad: dict[int, Fault] = {}
        if len(missing):
            read = decode(missing)
            img_N3HW[missing] = read.img_B3HW
            filled_N[missing] = True
            bad = {int(missing[row]): fault for row, fault in read.faults.items()}
            filled_N[list(bad)] = False
        faults = {row: bad[i] for row, i in enumerate(index_B.tolist()) if i in bad} if bad else {}
        return ReadImages(img_N3HW[index_B], faults)
