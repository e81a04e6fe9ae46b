"""Sets of feature vectors: sorted rows, random subsets, distances."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from varlab.rng import Rng

ROWS, COLUMNS = 1024, 4096  # of a block of distances: all that is in memory beside the features


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


def ordered_rows(x: list[Tensor], number: list[Tensor]) -> Tensor:
    """The rows of all batches and ranks, by their numbers, or by their content without numbers."""
    x_NF = dim_zero_cat(x)
    return x_NF[dim_zero_cat(number).argsort()] if len(number) else sorted_rows(x_NF)


def squared_distances(a_nF: Tensor, b_mF: Tensor) -> Tensor:
    """d_nm of all pairs, in float64."""
    a_nF, b_mF = a_nF.double(), b_mF.double()
    square_n, square_m = a_nF.square().sum(1), b_mF.square().sum(1)
    return torch.addmm(square_m, a_nF, b_mF.T, alpha=-2).add_(square_n[:, None]).clamp_min_(0)


def nearest(a_NF: Tensor, b_MF: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Find the ``count`` nearest points of ``b`` to each of ``a``: (squared distances d_Nk, row_Nk), the nearest first.

    In float64, a block at a time, so memory does not grow with either set. Fewer than ``count`` where ``b`` has fewer.
    """
    found = []
    for points in a_NF.split(ROWS):
        d_nk = points.new_empty((len(points), 0), dtype=torch.float64)
        row_nk = d_nk.long()
        for first in range(0, len(b_MF), COLUMNS):
            block = b_MF[first : first + COLUMNS]
            here = squared_distances(points, block).topk(min(count, len(block)), largest=False)
            d_nk, row_nk = torch.cat([d_nk, here.values], 1), torch.cat([row_nk, here.indices + first], 1)
            d_nk, order = d_nk.topk(min(count, d_nk.shape[1]), largest=False, sorted=True)
            row_nk = row_nk.gather(1, order)
        found.append((d_nk, row_nk))
    return torch.cat([d for d, _ in found]), torch.cat([rows for _, rows in found])
