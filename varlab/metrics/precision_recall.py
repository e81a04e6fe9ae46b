"""Improved precision and recall: Kynkäänniemi et al. 2019. torchmetrics has none."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from varlab.errors import VarlabError
from varlab.metrics.features import distances, random_rows
from varlab.rng import Rng


def _radii(x_NF: Tensor, neighbours: int) -> Tensor:
    """r_N: the distance of each point to its k-th nearest neighbour, not counting the point itself."""
    return torch.cat([d_nN.kthvalue(neighbours + 1, dim=1).values for d_nN in distances(x_NF, x_NF)])


def _covered(x_NF: Tensor, manifold_MF: Tensor, radii_M: Tensor) -> Tensor:
    """The share of points that lie within any ball of the manifold: a scalar."""
    inside = [(d_nM <= radii_M).any(dim=1) for d_nM in distances(x_NF, manifold_MF)]
    return torch.cat(inside).double().mean()


class PrecisionRecall(Metric):
    """Precision is the share of generated points inside the real manifold, recall that of real points in the generated.

    A manifold is the union of balls around its points that reach their k-th neighbours (eq. 1 and 2). neighbours: k, 3 in the
    paper. manifold: at most this many points of each set, drawn by ``seed`` (10,000 in the ADM suite); None for all.
    Every rank must update both sets. ``compute`` raises VarlabError for sets of k points or fewer.
    """

    full_state_update = False
    higher_is_better = True
    real: list[Tensor]
    fake: list[Tensor]

    def __init__(self, *, neighbours: int, manifold: int | None, seed: int):
        super().__init__()
        self.neighbours, self.manifold, self.rng = neighbours, manifold, Rng(seed)
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("fake", [], dist_reduce_fx="cat")

    def update(self, features_BF: Tensor, real: bool) -> None:
        """Add features to one of the sets."""
        (self.real if real else self.fake).append(features_BF)

    def compute(self) -> tuple[Tensor, Tensor]:
        """(precision, recall), float64 scalars in [0, 1]."""
        real_NF = random_rows(dim_zero_cat(self.real), self.manifold, self.rng)
        fake_NF = random_rows(dim_zero_cat(self.fake), self.manifold, self.rng)
        fewest = min(real_NF.shape[0], fake_NF.shape[0])
        if fewest <= self.neighbours:
            raise VarlabError(
                f"Precision and recall need more than {self.neighbours} images of each set, not {fewest}."
            )
        precision = _covered(fake_NF, real_NF, _radii(real_NF, self.neighbours))
        recall = _covered(real_NF, fake_NF, _radii(fake_NF, self.neighbours))
        return precision, recall

    def features(self) -> tuple[Tensor, Tensor]:
        """(real_NF, fake_NF) of all ranks. All ranks must call it together."""
        with self.sync_context():
            return dim_zero_cat(self.real), dim_zero_cat(self.fake)
