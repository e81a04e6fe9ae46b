"""Sets of feature vectors: sorted rows, random subsets, distances."""

from __future__ import annotations

from math import inf

import torch
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from varlab.rng import Rng

BLOCK = 1024
"""Points of each side of a block of distances, which is all that is in memory beside the features, and stays in a cache."""


class Rows:
    """The rows of several tensors, as those of one tensor that is never made: only what is asked for is copied.

    parts: x_NF of all rows, or of batches. order_N: the rows' numbers in their new order; None for as they come.
    """

    def __init__(self, parts: Tensor | list[Tensor], order_N: Tensor | None = None):
        self._parts = [parts] if isinstance(parts, Tensor) else parts
        counts = torch.tensor([len(part) for part in self._parts], dtype=torch.int64)
        self._ends = counts.cumsum(0)
        self._order_N = torch.arange(int(counts.sum())) if order_N is None else order_N.cpu()

    def __len__(self) -> int:
        return len(self._order_N)

    @property
    def device(self) -> torch.device:
        """Of the tensors."""
        return self._parts[0].device

    def ordered(self, order_N: Tensor) -> Rows:
        """The same rows in another order, or some of them."""
        return Rows(self._parts, self._order_N[order_N.cpu()])

    def __getitem__(self, rows: slice | Tensor) -> Tensor:
        """A copy of some rows."""
        row_n = self._order_N[rows if isinstance(rows, slice) else rows.cpu()]
        part_n = torch.searchsorted(self._ends, row_n, right=True)
        x_nF = self._parts[0].new_empty(len(row_n), *self._parts[0].shape[1:])
        for k in part_n.unique().tolist():
            place = (part_n == k).nonzero()[:, 0]
            part, here = self._parts[k], row_n[place] - self._ends[k] + len(self._parts[k])
            x_nF[place.to(part.device)] = part[here.to(part.device)]
        return x_nF


def sorted_rows(x_NF: Tensor) -> Tensor:
    """The rows in lexicographic order, which does not depend on batches or ranks."""
    rows_MF, count_M = torch.unique(x_NF, dim=0, return_counts=True)
    return rows_MF.repeat_interleave(count_M, dim=0)


def random_rows(x_NF: Tensor, size: int | None, rng: Rng) -> Tensor:
    """At most ``size`` rows (None: all) drawn without replacement, whatever the order of the rows."""
    if size is None or x_NF.shape[0] <= size:
        return x_NF
    rows_NF = sorted_rows(x_NF)
    chosen_N = rng.stream("metrics").permutation(rows_NF.shape[0])[0, :size]
    return rows_NF[chosen_N.to(rows_NF.device)]


def ordered_rows(x: list[Tensor], number: list[Tensor]) -> Rows:
    """The rows of all batches and ranks, by their numbers, or by their content without numbers."""
    return Rows(x, dim_zero_cat(number).argsort()) if len(number) else Rows(sorted_rows(dim_zero_cat(x)))


def squared_distances(a_nF: Tensor, b_mF: Tensor) -> Tensor:
    """d_nm of all pairs, in float64."""
    a_nF, b_mF = a_nF.double(), b_mF.double()
    square_n, square_m = a_nF.square().sum(1), b_mF.square().sum(1)
    return torch.addmm(square_m, a_nF, b_mF.T, alpha=-2).add_(square_n[:, None]).clamp_min_(0)


def nearest(a_NF: Tensor | Rows, b_MF: Tensor | Rows, count: int) -> tuple[Tensor, Tensor]:
    """Find the ``count`` nearest points of ``b`` to each of ``a``: (squared distances d_Nk, row_Nk), the nearest first.

    In float64, a block at a time, so memory does not grow with either set. Fewer than ``count`` where ``b`` has fewer.
    """
    found = []
    for start in range(0, max(len(a_NF), 1), BLOCK):
        points = a_NF[start : start + BLOCK]
        d_nk = points.new_empty((len(points), 0), dtype=torch.float64)
        row_nk = d_nk.long()
        for first in range(0, len(b_MF), BLOCK):
            block = b_MF[first : first + BLOCK]
            here = squared_distances(points, block).topk(min(count, len(block)), largest=False)
            d_nk, row_nk = torch.cat([d_nk, here.values], 1), torch.cat([row_nk, here.indices + first], 1)
            d_nk, order = d_nk.topk(min(count, d_nk.shape[1]), largest=False, sorted=True)
            row_nk = row_nk.gather(1, order)
        found.append((d_nk, row_nk))
    return torch.cat([d for d, _ in found]), torch.cat([rows for _, rows in found])


def nearest_others(x_NF: Tensor | Rows, count: int) -> Tensor:
    """d_Nk: the squared distances of each point to its ``count`` nearest other points, the nearest first.

    As ``nearest``, but each pair is computed once. Infinity where there are fewer others.
    """
    d_Nk = torch.full((len(x_NF), count), inf, dtype=torch.float64, device=x_NF.device)
    for first in range(0, len(x_NF), BLOCK):
        here = slice(first, first + BLOCK)
        points = x_NF[here]
        for second in range(first, len(x_NF), BLOCK):
            there = slice(second, second + BLOCK)
            d_nm = squared_distances(points, x_NF[there])
            if first == second:
                d_nm.fill_diagonal_(inf)
            else:
                d_Nk[there] = _smallest(d_Nk[there], d_nm.T.contiguous())
            d_Nk[here] = _smallest(d_Nk[here], d_nm)
    return d_Nk


def _smallest(d_nk: Tensor, more_nm: Tensor) -> Tensor:
    """The k smallest of both, in ascending order."""
    more_nk = more_nm.topk(min(d_nk.shape[1], more_nm.shape[1]), largest=False).values
    return torch.cat([d_nk, more_nk], 1).topk(d_nk.shape[1], largest=False, sorted=True).values
