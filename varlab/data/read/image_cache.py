"""Decoded images in memory: what a read gives, buffers that are used again, and splits that are kept whole."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varlab.types import Fault

__all__ = ["Buffers", "Cache", "Read"]

U8 = NDArray[np.uint8]


@dataclass
class Read:
    """Images of a batch, uint8 ``img_B3HW``; rows that could not be read are black and named in ``faults``.

    box_B4: what was cut out, as shares of the image (top, left, bottom, right); None where nothing
    was, or nobody asks.
    """

    img_B3HW: Tensor
    faults: dict[int, Fault] = field(default_factory=dict)
    box_B4: Tensor | None = None


class Buffers:
    """Arrays for batches, each used again once nobody holds it: to touch new memory takes longer than to fill old."""

    MOST = 4

    def __init__(self) -> None:
        self._arrays: list[U8] = []

    def __getstate__(self) -> dict[str, object]:
        return {"_arrays": []}

    def take(self, shape: tuple[int, ...]) -> U8:
        """An array of that shape, filled with anything."""
        for array in self._arrays:
            if array.shape == shape and sys.getrefcount(array) == _UNHELD:
                return array
        array = np.empty(shape, dtype=np.uint8)
        self._arrays = [*self._arrays[1 - self.MOST :], array]
        return array


_UNHELD = 3  # references to an array that only the list, the loop over it and the count itself know


class Cache:
    """Decoded images of a split, if they all fit into ``room`` bytes."""

    def __init__(self, n: int, size: tuple[int, int], room: int):
        self._n, self._size = n, size
        self._on = n * 3 * size[0] * size[1] <= room
        self._img_N3HW: Tensor | None = None
        self._filled_N: Tensor | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_img_N3HW": None, "_filled_N": None}

    def read(self, index_B: Tensor, decode_all: Callable[[Tensor], Read]) -> Read:
        """Images of those numbers; ``decode_all`` reads those that are not in memory."""
        if not self._on:
            return decode_all(index_B)
        if self._img_N3HW is None or self._filled_N is None:
            self._img_N3HW = torch.empty((self._n, 3, *self._size), dtype=torch.uint8)
            self._filled_N = torch.zeros(self._n, dtype=torch.bool)
        missing = torch.unique(index_B[~self._filled_N[index_B]])
        bad: dict[int, Fault] = {}
        if len(missing):
            read = decode_all(missing)
            self._img_N3HW[missing] = read.img_B3HW
            self._filled_N[missing] = True
            bad = {int(missing[row]): fault for row, fault in read.faults.items()}
            self._filled_N[list(bad)] = False
        faults = {row: bad[i] for row, i in enumerate(index_B.tolist()) if i in bad} if bad else {}
        return Read(self._img_N3HW[index_B], faults)
