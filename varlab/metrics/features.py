"""Sets of feature vectors: sorted rows, random subsets, distances."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torchmetrics.utilities.data import dim_zero_cat

from varlab.rng import Rng

_CHUNK = 2048  # rows of a distance matrix held at once


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


def distances(a_NF: Tensor, b_MF: Tensor) -> Iterator[Tensor]:
    """Euclidean distances d_nM of successive chunks of ``a`` to all of ``b``, in float64."""
    b_MF = b_MF.double()
    for chunk_nF in a_NF.split(_CHUNK):
        yield torch.cdist(chunk_nF.double(), b_MF)
