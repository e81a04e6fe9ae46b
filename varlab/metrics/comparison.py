"""Comparison of samples with held-out images, for small data sets: FID of equal-sized draws, distances to training images.

FID falls with the number of images it is estimated from (Chong & Forsyth 2020), so the FID of 1,000 samples cannot be compared
with that of 360 held-out images. And a generator that copies its training set has a perfect FID; its distances to the nearest
training images, compared with those of held-out images, show the copying.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from statistics import mean, pstdev

import torch
from torch import Tensor

from varlab.errors import VarlabError
from varlab.metrics.features import distances, sorted_rows
from varlab.metrics.generator_scores import FID
from varlab.rng import Rng

log = logging.getLogger(__name__)


def frechet_distances(sets: Iterable[Tensor], reference_MF: Tensor) -> list[float]:
    """FID of each set of features against one reference. VarlabError for a set or reference of fewer than two images."""
    metric = FID(num_features=reference_MF.shape[1]).to(reference_MF.device)
    metric.sync_on_compute = False  # the features are already those of all ranks
    metric.reset_real_features = False
    metric.update(reference_MF, real=True)
    fids = []
    for x_NF in sets:
        if min(x_NF.shape[0], reference_MF.shape[0]) < 2:
            raise VarlabError(f"FID needs two images of each set, not {x_NF.shape[0]} and {reference_MF.shape[0]}.")
        metric.update(x_NF.to(reference_MF.device), real=False)
        fids.append(float(metric.compute()))
        metric.reset()
    return fids


def matched_draws(
    fake_NF: Tensor,
    fake_label_N: Tensor,
    train_NF: Tensor,
    val_NF: Tensor,
    val_label_M: Tensor,
    *,
    draws: int,
    rng: Rng,
) -> dict[str, float]:
    """FID against the training images, of equal-sized draws of samples and of held-out images.

    A draw takes, without replacement, as many samples of each class as there are held-out images of it: in a classifier's
    features the classes are far apart, and other shares of the classes would change the FID. If a class has fewer samples,
    the draw takes them all, and a warning is logged. The draws depend only on ``rng``'s stream "metrics" and the samples,
    not on their order. Returns fid_draws (mean), fid_draws_std, fid_draws_n (size of a draw), fid_val, and
    fid_ratio = fid_draws / fid_val.
    """
    drawn: list[list[Tensor]] = [[] for _ in range(draws)]
    for label in val_label_M.unique().tolist():
        rows_NF = sorted_rows(fake_NF[fake_label_N == label])
        stream = rng.stream("metrics", ids=torch.arange(draws), step=label)
        chosen_DN = stream.permutation(rows_NF.shape[0])[:, : int((val_label_M == label).sum())]
        for draw, chosen_N in zip(drawn, chosen_DN.to(rows_NF.device), strict=True):
            draw.append(rows_NF[chosen_N])
    sets = [torch.cat(parts) for parts in drawn]
    if len(sets[0]) < len(val_NF):
        log.warning("FID draws take all %d samples, fewer than the %d held-out images.", len(sets[0]), len(val_NF))
    *fids, fid_val = frechet_distances([*sets, val_NF], train_NF)
    size = float(len(sets[0]))
    scores = {"fid_draws": mean(fids), "fid_draws_std": pstdev(fids), "fid_draws_n": size, "fid_val": fid_val}
    return scores | _ratio("fid_ratio", scores["fid_draws"], fid_val)


def nearest_distance(a_NF: Tensor, train_NF: Tensor) -> Tensor:
    """d_N float64: the distance of each point to the nearest training image, in feature space."""
    return torch.cat([d_nM.min(dim=1).values for d_nM in distances(a_NF, train_NF)])


def nearest_scores(fake_NF: Tensor, train_NF: Tensor, val_NF: Tensor) -> dict[str, float]:
    """nn_median of samples, nn_val_median of held-out images, and nn_ratio: near 1 for new images, near 0 for copies."""
    fake = float(nearest_distance(fake_NF, train_NF).median())
    val = float(nearest_distance(val_NF, train_NF).median())
    return {"nn_median": fake, "nn_val_median": val} | _ratio("nn_ratio", fake, val)


def _ratio(name: str, of: float, to: float) -> dict[str, float]:
    """Empty if held-out images are training images, so that there is nothing to compare with."""
    return {name: of / to} if to > 0 else {}
