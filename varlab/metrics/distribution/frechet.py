"""The Fréchet distance of two sets of features (FID, Heusel et al. 2017, eq. 6), or of their stored moments."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torchmetrics.image.fid import FrechetInceptionDistance

from varlab.errors import VarlabError
from varlab.metrics.features import Rows

__all__ = ["FID", "Moments", "PassThrough", "frechet_distance", "moments", "rough_distances"]

BLOCK = 4096  # features that are in float64 at once


class Moments(NamedTuple):
    """Mean and covariance (N - 1 in the denominator) of features, float64."""

    mu_F: Tensor
    sigma_FF: Tensor


def moments(x_NF: Tensor | Rows) -> Moments:
    """Mean and covariance of features, a block at a time. VarlabError for fewer than two images."""
    if (n := len(x_NF)) < 2:
        raise VarlabError(f"FID needs two images or more of each set, not {n}.")
    blocks = [slice(start, start + BLOCK) for start in range(0, n, BLOCK)]
    mu_F = torch.stack([x_NF[block].double().sum(0) for block in blocks]).sum(0) / n
    scatter_FF = mu_F.new_zeros(len(mu_F), len(mu_F))
    for block in blocks:
        centred_nF = x_NF[block].double() - mu_F
        scatter_FF.addmm_(centred_nF.T, centred_nF)
    return Moments(mu_F, scatter_FF / (n - 1))


def frechet_distance(a: Moments, b: Moments) -> Tensor:
    """|mu_a - mu_b|² + tr(S_a + S_b - 2 (S_a S_b)^½), a float64 scalar.

    The trace of the root is the sum of the singular values of S_a^½ S_b^½. They are exact to a rounding of the largest one
    where a covariance has no full rank, while a root of S_a S_b itself would lose half of the digits.
    """
    mean = (a.mu_F - b.mu_F).square().sum()
    root = torch.linalg.svdvals(_root(a.sigma_FF) @ _root(b.sigma_FF)).sum()
    return mean + a.sigma_FF.trace() + b.sigma_FF.trace() - 2 * root


def rough_distances(sets: Iterable[Moments], reference: Moments) -> list[float]:
    """``frechet_distance`` of each set, with half of its digits and at a third of its cost where there are many sets."""
    root_FF, distances = _root(reference.sigma_FF), []
    for of in sets:
        product = torch.linalg.eigvalsh(root_FF @ of.sigma_FF @ root_FF).clamp_min(0).sqrt().sum()
        traces = of.sigma_FF.trace() + reference.sigma_FF.trace() - 2 * product
        distances.append(float((of.mu_F - reference.mu_F).square().sum() + traces))
    return distances


def _root(sigma_FF: Tensor) -> Tensor:
    values_F, vectors_FF = torch.linalg.eigh(sigma_FF)
    return vectors_FF * values_F.clamp_min(0).sqrt() @ vectors_FF.T


class PassThrough(nn.Module):
    """A feature network for torchmetrics that gets features in place of images, and returns them in float64."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features_BF: Tensor) -> Tensor:
        return features_BF.double()


class FID(FrechetInceptionDistance):
    """torchmetrics' FID over features, ``update(features_BF, real)``, in float64.

    reference: stored moments of the real images, which then are not updated.
    """

    real_features_sum: Tensor
    real_features_cov_sum: Tensor
    real_features_num_samples: Tensor
    fake_features_sum: Tensor
    fake_features_cov_sum: Tensor
    fake_features_num_samples: Tensor

    def __init__(self, *, num_features: int, reference: Moments | None = None):
        super().__init__(feature=PassThrough(num_features))
        if reference is not None and reference.mu_F.shape[0] != num_features:
            raise VarlabError(
                f"The reference has moments of {reference.mu_F.shape[0]} features, the extractor has {num_features}: give "
                "the extractor that the reference was made with."
            )
        self._reference = reference

    def update(self, features_BF: Tensor, real: bool) -> None:
        """Add features to one of the sets; those of real images count only without stored moments."""
        if not real or self._reference is None:
            super().update(features_BF, real)

    def moments(self, *, real: bool) -> Moments:
        """Mean and covariance of one of the sets."""
        if real and self._reference is not None:
            return Moments(*(part.to(self.fake_features_sum) for part in self._reference))
        of = "real" if real else "fake"
        n = getattr(self, f"{of}_features_num_samples")
        mu_F = getattr(self, f"{of}_features_sum") / n
        return Moments(mu_F, (getattr(self, f"{of}_features_cov_sum") - n * mu_F.outer(mu_F)) / (n - 1))

    def compute(self) -> Tensor:
        """The distance. VarlabError for fewer than two images of a set."""
        counts = [int(self.fake_features_num_samples)]
        counts += [] if self._reference is not None else [int(self.real_features_num_samples)]
        if min(counts) < 2:
            raise VarlabError(f"FID needs two images or more of each set, not {min(counts)}.")
        return frechet_distance(self.moments(real=True), self.moments(real=False))
