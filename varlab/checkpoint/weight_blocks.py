"""Weights of a mapped file in blocks that fit into a processor's cache: memory gives each byte once for all that is done."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

__all__ = ["LARGEST", "WeightBlocks", "is_sound"]

Bytes: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.uint8]]"

LARGEST = 1e18
"""A weight beyond it has no square in float32."""
_BLOCK = 1 << 19  # bytes


class WeightBlocks:
    """The bytes of a file's tensors in its order, once; each block is copied to its place, given out, and then judged.

    stored: the tensors in the order of the file. places: where a tensor of the same name goes, if the bytes fit there.
    """

    def __init__(self, stored: Mapping[str, Tensor], places: Mapping[str, Tensor]):
        self._stored, self._places = stored, places
        self.diverged: str | None = None
        """The first tensor that is not sound."""
        self.copied: set[str] = set()
        """The tensors that are in their place."""

    def __iter__(self) -> Iterator[memoryview]:
        for name, tensor in self._stored.items():
            if not tensor.numel():
                continue
            place = self._places.get(name)
            if place is not None and _takes_bytes(place, tensor):
                self.copied.add(name)
                blocks = _copied(_bytes(tensor), _bytes(place))
            else:
                blocks = _split(_bytes(tensor))
            for block in blocks:
                yield block.data
                if tensor.is_floating_point() and self.diverged is None and not _is_sound_block(block, tensor.dtype):
                    self.diverged = name


def is_sound(tensor: Tensor) -> bool:
    """Whether all numbers of a tensor of floats, not an empty one, and their squares in float32 are finite."""
    least, most = tensor.aminmax()
    return bool(least >= -LARGEST and most <= LARGEST)  # of NaN, neither holds


def _is_sound_block(block: Bytes, dtype: torch.dtype) -> bool:
    numbers = torch.from_numpy(block).view(dtype)
    # No square is larger than the sum of all, which takes half the time; NaN and overflow fail here.
    return bool(torch.dot(numbers, numbers) < LARGEST**2 / 2) or is_sound(numbers)


def _takes_bytes(place: Tensor, tensor: Tensor) -> bool:
    is_plain = place.device.type == "cpu" and place.layout is torch.strided and place.is_contiguous()
    return is_plain and (place.dtype, place.shape) == (tensor.dtype, tensor.shape)


def _bytes(tensor: Tensor) -> Bytes:
    array: Bytes = tensor.detach().flatten().view(torch.uint8).numpy()
    return array


def _split(data: Bytes) -> Iterator[Bytes]:
    return (data[at : at + _BLOCK] for at in range(0, len(data), _BLOCK))


def _copied(data: Bytes, place: Bytes) -> Iterator[Bytes]:
    """The blocks of ``place``, each as soon as it holds those of ``data``."""
    for source, target in zip(_split(data), _split(place), strict=True):
        target[:] = source
        yield target
