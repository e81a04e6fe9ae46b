"""FID of one set of samples in several feature spaces, each beside what held-out real images score there."""

from __future__ import annotations

from collections.abc import Mapping

from varlab.metrics.comparison import fid_error, frechet_distances, matched_draws, ratio_over_spaces
from varlab.metrics.distribution.frechet import moments
from varlab.metrics.extractors import Extractor
from varlab.rng import Rng
from varlab.score.image_set import ImageSet, gathered_features

__all__ = ["score_spaces"]


def score_spaces(
    extractors: Mapping[str, Extractor],
    *,
    samples: ImageSet,
    train: ImageSet,
    held_out: ImageSet | None,
    draws: int,
    seed: int,
    batch: int,
) -> dict[str, float]:
    """``NAME/fid`` and its error for each space; with held-out images also the draws of ``matched_draws``, and FDr."""
    values: dict[str, float] = {}
    for name, extractor in extractors.items():
        fake_NF, fake_label_N = gathered_features(samples, extractor, batch=batch)
        train_NF, _ = gathered_features(train, extractor, batch=batch)
        scores = {"fid": frechet_distances([fake_NF], train_NF)[0]}
        scores["fid_error"] = fid_error(fake_NF, moments(train_NF), rng=Rng(seed))
        if held_out is not None:
            val_NF, val_label_M = gathered_features(held_out, extractor, batch=batch)
            scores |= matched_draws(fake_NF, fake_label_N, train_NF, val_NF, val_label_M, draws=draws, rng=Rng(seed))
        values |= {f"{name}/{key}": value for key, value in scores.items()}
    return values | ratio_over_spaces(values)
