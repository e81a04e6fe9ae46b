"""Comparison of samples with held-out images, for small data sets: FID of equal-sized draws, distances to training images.

FID falls with the number of images it is estimated from (Chong & Forsyth 2020), so the FID of 1,000 samples cannot be compared
with that of 360 held-out images. And a generator that copies its training set has a perfect FID; its distances to the nearest
training images, compared with those of held-out images, show the copying.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import mean, pstdev
from typing import NamedTuple

import torch
from torch import Tensor

from varlab.metrics.distribution.frechet import Moments, frechet_distance, moments, rough_distances
from varlab.metrics.features import BLOCK, Rows, nearest, sorted_rows
from varlab.rng import Rng

log = logging.getLogger(__name__)

_GROUPS = 10  # of the samples, each left out once for the error of their FID
_PARTS = 5  # of the held-out images, each replaced once to see how certain their FID is
_MOST_GROWTH = 3.0  # of that FID by the replacement
_ROUNDING = 2.0**-26  # a float64 eigenvalue of zero can come out as the square root of the rounding


def frechet_distances(sets: Iterable[Tensor], reference: Tensor | Rows | Moments) -> list[float]:
    """FID of each set of features against one reference. VarlabError for a set or reference of fewer than two images."""
    real = reference if isinstance(reference, Moments) else moments(reference)
    return [float(frechet_distance(real, moments(x_NF.to(real.mu_F.device)))) for x_NF in sets]


def fid_error(fake_NF: Tensor, reference: Moments, *, rng: Rng) -> float:
    """The standard error of FID by the samples that were drawn: the jackknife over tenths of them, left out in turn.

    The tenths depend on ``rng``'s stream "metrics/jackknife" and the samples, not on their order.
    """
    rows_NF = sorted_rows(fake_NF)
    part_N = rng.stream("metrics/jackknife").permutation(len(rows_NF))[0].to(rows_NF.device) % _GROUPS
    fids = rough_distances((moments(rows_NF[part_N != part]) for part in range(_GROUPS)), reference)
    return math.sqrt(_GROUPS - 1) * pstdev(fids)


def ratio_over_spaces(values: Mapping[str, float]) -> dict[str, float]:
    """fdr, the mean of ``fid_ratio`` over all feature spaces, and fdr_spaces, their number; empty if no space has one.

    values: with the ratio of the first space, and those of others as ``NAME/fid_ratio``. Each space divides by what real
    held-out images score there, so none outweighs the others (FDr: a generator that is tuned for one is far away in others).
    """
    ratios = [value for name, value in values.items() if name.split("/")[-1] == "fid_ratio"]
    return {"fdr": mean(ratios), "fdr_spaces": float(len(ratios))} if ratios else {}


def matched_draws(
    fake_NF: Tensor,
    fake_label_N: Tensor | None,
    train_NF: Tensor | Rows,
    val_NF: Tensor,
    val_label_M: Tensor | None,
    *,
    draws: int,
    rng: Rng,
) -> dict[str, float]:
    """FID against the training images, of equal-sized draws of samples and of held-out images.

    A draw takes, without replacement, as many samples of each class as there are held-out images of it: in a classifier's
    features the classes are far apart, and other shares of the classes would change the FID. If a class has fewer samples,
    the draw takes them all, and a warning is logged. Unless both sets have labels, all images are of one class. The draws
    depend only on ``rng``'s stream "metrics" and the samples, not on their order. Returns fid_draws (mean), fid_draws_std,
    fid_draws_n (size of a draw), fid_val, and fid_ratio = fid_draws / fid_val. There is no ratio where fid_val is noise
    (``_noise_of_fid``), as where the held-out images are also training images: there is nothing to compare with then.
    """
    if fake_label_N is None or val_label_M is None:
        fake_label_N, val_label_M = (x_NF.new_zeros(len(x_NF), dtype=torch.int64) for x_NF in (fake_NF, val_NF))
    drawn: list[list[Tensor]] = [[] for _ in range(draws)]
    for label in val_label_M.unique().tolist():
        rows_NF = sorted_rows(fake_NF[fake_label_N == label])
        stream = rng.stream("metrics", ids=torch.arange(draws), step=label)
        chosen_DN = stream.permutation(rows_NF.shape[0])[:, : int((val_label_M == label).sum())]
        for draw, chosen_N in zip(drawn, chosen_DN.to(rows_NF.device), strict=True):
            draw.append(rows_NF[chosen_N])
    sets, reference = [torch.cat(parts) for parts in drawn], moments(train_NF)
    if len(sets[0]) < len(val_NF):
        log.warning("FID draws take all %d samples, fewer than the %d held-out images.", len(sets[0]), len(val_NF))
    fids = frechet_distances([*sets, val_NF, *_resampled(val_NF, val_label_M, rng)], reference)
    fids, fid_val, resampled = fids[:draws], fids[draws], fids[draws + 1 :]
    size = float(len(sets[0]))
    scores = {"fid_draws": mean(fids), "fid_draws_std": pstdev(fids), "fid_draws_n": size, "fid_val": fid_val}
    noise = _noise_of_fid(resampled, reference)
    return scores | _ratio("fid_ratio", scores["fid_draws"], fid_val, noise=noise)


def _resampled(val_NF: Tensor, val_label_N: Tensor, rng: Rng) -> list[Tensor]:
    """The held-out images with each fifth of a class in turn replaced by others of the class. Their order does not matter."""
    sets: list[list[Tensor]] = [[] for _ in range(_PARTS)]
    first = 0
    for label in val_label_N.unique().tolist():
        rows_NF = sorted_rows(val_NF[val_label_N == label])
        order_N = rng.stream("metrics/parts", ids=label).permutation(len(rows_NF))[0].to(rows_NF.device)
        part_N = torch.arange(first, first + len(rows_NF), device=rows_NF.device) % _PARTS
        first += len(rows_NF)
        for part, chosen in enumerate(sets):
            kept_N = order_N[part_N != part] if len(rows_NF) > 1 else order_N
            chosen.append(rows_NF[kept_N.repeat(2)[: len(rows_NF)]])
    return [torch.cat(chosen) for chosen in sets]


def _noise_of_fid(resampled: Sequence[float], reference: Moments) -> float:
    """The value up to which the FID of the held-out images is noise.

    resampled: the FID of ``_resampled`` sets. With a fifth of the images replaced by others of their class, the FID of
    ordinary held-out images grows by about a third; that of images which are also training images grows from nothing. It is
    noise where the growth is over threefold, and below the rounding of the root of a singular covariance product.
    """
    rounding = len(reference.mu_F) * _ROUNDING * float(reference.sigma_FF.trace())
    return max(mean(resampled) / _MOST_GROWTH, rounding)


def nearest_distance(a_NF: Tensor | Rows, train_NF: Tensor | Rows) -> Tensor:
    """d_N float64: the distance of each point to the nearest training image, in feature space."""
    return nearest(a_NF, train_NF, 1)[0][:, 0].sqrt()


class Neighbours(NamedTuple):
    """Samples from the nearest to the farthest from the training images, evenly by rank, with their nearest ones.

    row_S: of the samples. train_SK: rows of their K nearest training images, the nearest first. distance_SK: to these.
    val_S: the distance of the held-out image of the same rank to its nearest training image; None without such images.
    """

    row_S: Tensor
    train_SK: Tensor
    distance_SK: Tensor
    val_S: Tensor | None

    def to_json(self) -> dict[str, list[float]]:
        """The distances to the nearest training images, as a result holds them."""
        val = {} if self.val_S is None else {"val_distance": self.val_S.tolist()}
        return {"distance": self.distance_SK[:, 0].tolist()} | val


def neighbours(
    fake_NF: Tensor | Rows, train_NF: Tensor | Rows, *, fake_N: Tensor, val_M: Tensor | None, shown: int, count: int
) -> Neighbours:
    """Choose ``shown`` samples and find the ``count`` nearest training images of each.

    fake_N, val_M: the distances of all samples and of all held-out images (``nearest_distance``).
    """
    order_N = fake_N.argsort(stable=True)
    shown = min(shown, len(order_N))
    row_S = order_N[evenly(len(order_N), shown)]
    squared_SK, train_SK = nearest(fake_NF[row_S], train_NF, count)
    val_S = None if val_M is None else val_M.sort().values[evenly(len(val_M), shown)]
    return Neighbours(row_S, train_SK, squared_SK.sqrt(), val_S)


def evenly(n: int, count: int) -> Tensor:
    """``count`` numbers below n, evenly spaced from the first to the last."""
    return torch.linspace(0, n - 1, count, dtype=torch.float64).round().long()


def nearest_scores(fake_N: Tensor, val_M: Tensor, train_NF: Tensor | Rows) -> dict[str, float]:
    """nn_median of samples, nn_val_median of held-out images, and nn_ratio: near 1 for new images, near 0 for copies.

    fake_N, val_M: see ``nearest_distance``. There is no nn_ratio where the median held-out image is a training image, up to
    the rounding of float32 features.
    """
    fake, val = float(fake_N.median()), float(val_M.median())
    starts = range(0, len(train_NF), BLOCK)
    rounding = 1e-6 * float(torch.cat([train_NF[i : i + BLOCK].double().norm(dim=1) for i in starts]).median())
    return {"nn_median": fake, "nn_val_median": val} | _ratio("nn_ratio", fake, val, noise=rounding)


def _ratio(name: str, of: float, to: float, *, noise: float) -> dict[str, float]:
    """Empty if the denominator is noise: that of held-out images which are training images is zero up to noise."""
    return {name: of / to} if to > noise else {}
