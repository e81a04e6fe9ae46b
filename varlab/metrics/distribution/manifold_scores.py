"""Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020). torchmetrics has none."""

from __future__ import annotations

from itertools import product

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities.data import dim_zero_cat

from varlab.errors import VarlabError
from varlab.metrics import features
from varlab.metrics.features import Rows, nearest_others, random_rows, squared_distances
from varlab.rng import Rng

__all__ = ["ManifoldScores"]


def _radii(x_NF: Rows, ks: tuple[int, ...]) -> list[Tensor]:
    """For each k, r_N: the squared distance of each point to its k-th nearest neighbour, not counting the point itself."""
    return list(nearest_others(x_NF, max(ks))[:, [k - 1 for k in ks]].T)


def _mean_of_classes(inside_N: Tensor, label_N: Tensor) -> Tensor:
    """For each class the share that is inside; NaN for a class without points."""
    inside_C, all_C = label_N[inside_N].bincount(minlength=int(label_N.max()) + 1), label_N.bincount()
    return inside_C.double() / all_C


class ManifoldScores(Metric):
    """Precision, recall, density and coverage of samples, each a mean over one of the sets of features.

    Precision: the share of samples in any ball around a real point that reaches its k-th neighbour; recall: that of real
    points in the balls of samples. neighbours: k, 3 in the paper. Density: in how many of the real points' balls a sample
    lies, divided by their k; coverage: the share of real points with a sample in their ball. density_neighbours: their k, 5
    in the paper; None leaves both out. manifold: at most this many points of each set, drawn by ``seed``; None for all.
    Distances are float64, a block at a time. Every rank must update both sets. Labels of all real points or of none: then
    ``recall_by_class`` is known after ``compute``.
    """

    full_state_update = False
    higher_is_better = True
    real: list[Tensor]
    fake: list[Tensor]
    real_label: list[Tensor]

    def __init__(self, *, neighbours: int, manifold: int | None, seed: int, density_neighbours: int | None = None):
        super().__init__()
        self.neighbours, self.density_neighbours = neighbours, density_neighbours
        self.manifold, self.rng = manifold, Rng(seed)
        self.add_state("real", [], dist_reduce_fx="cat")
        self.add_state("fake", [], dist_reduce_fx="cat")
        self.add_state("real_label", [], dist_reduce_fx="cat")
        self.recall_by_class: Tensor | None = None

    def update(self, features_BF: Tensor, real: bool, label_B: Tensor | None = None) -> None:
        """Add features to one of the sets. label_B: classes of real points."""
        (self.real if real else self.fake).append(features_BF)
        if real and label_B is not None:
            self.real_label.append(label_B)

    def _chosen(self, x: list[Tensor]) -> Rows:
        """At most ``manifold`` rows."""
        rows = Rows(x)
        if self.manifold is None or len(rows) <= self.manifold:
            return rows
        return Rows(random_rows(dim_zero_cat(x), self.manifold, self.rng))

    def _real(self) -> tuple[Rows, Tensor | None]:
        """(real_NF, label_N), at most ``manifold`` of them."""
        if not len(self.real_label):
            return self._chosen(self.real), None
        label_N = dim_zero_cat(self.real_label)
        if self.manifold is None or len(label_N) <= self.manifold:
            return Rows(self.real), label_N
        real_NF = dim_zero_cat(self.real)
        both_NG = random_rows(torch.cat([real_NF, label_N[:, None].to(real_NF)], 1), self.manifold, self.rng)
        return Rows(both_NG[:, :-1]), both_NG[:, -1].long()

    def compute(self) -> dict[str, Tensor]:
        """precision, recall and coverage in [0, 1], density >= 0: float64 scalars. VarlabError for k points or fewer."""
        real_NF, label_N = self._real()
        fake_MF = self._chosen(self.fake)
        wide = self.density_neighbours or self.neighbours
        fewest = min(len(real_NF), len(fake_MF))
        if fewest <= max(self.neighbours, wide):
            raise VarlabError(
                f"Precision and recall need more than {max(self.neighbours, wide)} images of each set, not {fewest}."
            )
        balls_N, wide_N = _radii(real_NF, (self.neighbours, wide))
        [balls_M] = _radii(fake_MF, (self.neighbours,))
        inside_M, inside_N, covered_N = (
            torch.zeros(len(of), dtype=torch.bool, device=real_NF.device) for of in (fake_MF, real_NF, real_NF)
        )
        hits = torch.zeros((), dtype=torch.int64, device=real_NF.device)
        for i, j in product(range(0, len(fake_MF), features.BLOCK), range(0, len(real_NF), features.BLOCK)):
            m, n = slice(i, i + features.BLOCK), slice(j, j + features.BLOCK)
            d_mn = squared_distances(fake_MF[m], real_NF[n])
            inside_M[m] |= (d_mn <= balls_N[n]).any(1)
            inside_N[n] |= (d_mn <= balls_M[m, None]).any(0)
            in_wide_mn = d_mn <= wide_N[n]
            hits += in_wide_mn.sum()
            covered_N[n] |= in_wide_mn.any(0)
        self.recall_by_class = None if label_N is None else _mean_of_classes(inside_N, label_N)
        scores = {"precision": inside_M.double().mean(), "recall": inside_N.double().mean()}
        if self.density_neighbours is None:
            return scores
        return scores | {"density": hits.double() / (wide * len(fake_MF)), "coverage": covered_N.double().mean()}

    def rows(self) -> tuple[Rows, Rows]:
        """``features``, of which nothing is copied."""
        with self.sync_context():
            return Rows(self.real), Rows(self.fake)

    def features(self) -> tuple[Tensor, Tensor]:
        """(real_NF, fake_NF) of all ranks. All ranks must call it together."""
        with self.sync_context():
            return dim_zero_cat(self.real), dim_zero_cat(self.fake)
