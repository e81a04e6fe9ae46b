"""The kernel distance of two sets of features (KID, Bińkowski et al. 2018)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from varlab.errors import VarlabError
from varlab.metrics.features import ordered_rows

__all__ = ["KID"]


class KID(Metric):
    """The unbiased squared MMD under the kernel (x·y / F + 1)³: mean and standard deviation over random subsets.

    subsets, size: 100 of 1,000 in the reference, whose subsets these are: numpy's RandomState(seed), by the rows' numbers. The
    value does not depend on the order of updates; without numbers rows are ordered by content. Sets smaller than ``size`` are
    taken whole. Every rank must update both sets.
    """

    full_state_update = False
    higher_is_better = False
    real: list[Tensor]
    fake: list[Tensor]
    real_row: list[Tensor]
    fake_row: list[Tensor]

    def __init__(self, *, subsets: int, size: int, seed: int):
        super().__init__()
        self.subsets, self.size, self.seed = subsets, size, seed
        for state in ("real", "fake", "real_row", "fake_row"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def update(self, features_BF: Tensor, real: bool, row_B: Tensor | None = None) -> None:
        """Add features to one of the sets. row_B: their numbers in the set."""
        (self.real if real else self.fake).append(features_BF)
        if row_B is not None:
            (self.real_row if real else self.fake_row).append(row_B)

    def compute(self) -> tuple[Tensor, Tensor]:
        """(mean, standard deviation of the subsets), float64. VarlabError for a set of one image."""
        fake_NF, real_MF = ordered_rows(self.fake, self.fake_row), ordered_rows(self.real, self.real_row)
        n, m = len(fake_NF), len(real_MF)
        if min(n, m) < 2:
            raise VarlabError(f"KID needs two images or more of each set, not {min(n, m)}.")
        random, size = np.random.RandomState(self.seed), min(self.size, n, m)
        values = []
        for _ in range(self.subsets):
            chosen = [torch.from_numpy(random.choice(of, size, replace=False)) for of in (n, m)]
            values.append(_mmd(fake_NF[chosen[0]], real_MF[chosen[1]]))
        values_S = torch.stack(values)
        return values_S.mean(), values_S.std(correction=0)


def _mmd(x_NF: Tensor, y_NF: Tensor) -> Tensor:
    x_NF, y_NF = x_NF.double(), y_NF.double()
    n = len(x_NF)
    within = sum((k := _kernel(z_NF, z_NF)).sum() - k.trace() for z_NF in (x_NF, y_NF))
    return within / (n * (n - 1)) - 2 * _kernel(x_NF, y_NF).mean()


def _kernel(x_NF: Tensor, y_MF: Tensor) -> Tensor:
    return (x_NF @ y_MF.T / x_NF.shape[1] + 1) ** 3
