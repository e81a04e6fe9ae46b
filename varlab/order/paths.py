"""Paths over an h×w grid: each returns (h·w,) int64, the cells (row by row numbers) in the order they are visited.

Raster, VQGAN's spirals, z-curve, alternate and subsample are the orders VQGAN compares (Esser et al. 2021, fig. "orderings"),
cell by cell as in its code. A new path is one function here, or in any importable module, and one YAML in ``conf/order``.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _grid(h: int, w: int) -> tuple[Tensor, Tensor]:
    cells = torch.arange(h * w)
    return cells // w, cells % w


def _bits(h: int, w: int) -> int:
    return max(max(h, w) - 1, 1).bit_length()


def raster(h: int, w: int) -> Tensor:
    """Row by row."""
    return torch.arange(h * w)


def alternate(h: int, w: int) -> Tensor:
    """Row by row, every second row from right to left."""
    grid = torch.arange(h * w).view(h, w)
    grid[1::2] = grid[1::2].flip(1)
    return grid.reshape(-1)


def _clockwise(grid: Tensor) -> Tensor:
    """The cells of a grid clockwise from its upper left corner towards the centre."""
    rings = []
    while grid.numel():
        rings.append(grid[0])
        grid = grid[1:].T.flip(0)  # drop the row just walked, turn the next side to the top
    return torch.cat(rings)


def vqgan_spiral_in(h: int, w: int) -> Tensor:
    """Anticlockwise from the bottom right corner, upwards first, towards the centre: ``vqgan_spiral_out`` backwards."""
    return _clockwise(torch.arange(h * w).view(h, w).T.flip(0, 1))


def vqgan_spiral_out(h: int, w: int) -> Tensor:
    """Clockwise from the centre to the bottom right corner. In a square of even sides it begins at the lower left of the
    four central cells, upwards.
    """
    return vqgan_spiral_in(h, w).flip(0)


def corner_spiral_in(h: int, w: int) -> Tensor:
    """Clockwise from the top left corner towards the centre."""
    return _clockwise(torch.arange(h * w).view(h, w))


def corner_spiral_out(h: int, w: int) -> Tensor:
    """From the centre to the top left corner: ``corner_spiral_in`` backwards."""
    return corner_spiral_in(h, w).flip(0)


def z_curve(h: int, w: int) -> Tensor:
    """Morton order: bits of row and column interleaved, the highest first."""
    row, col = _grid(h, w)
    key = torch.zeros_like(row)
    for bit in reversed(range(_bits(h, w))):
        key = key * 4 + (row >> bit & 1) * 2 + (col >> bit & 1)
    return key.argsort(stable=True)


def subsample(h: int, w: int) -> Tensor:
    """Coarse to fine by striding: every 2^n-th cell first, then the shifted grids between them (lowest bits first)."""
    row, col = _grid(h, w)
    key = torch.zeros_like(row)
    for bit in range(_bits(h, w)):
        key = key * 4 + (row >> bit & 1) * 2 + (col >> bit & 1)
    return key.argsort(stable=True)
