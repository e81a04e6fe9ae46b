"""FID of one set of samples in several feature spaces, each beside what held-out real images score there."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from varlab.metrics.comparison import fid_error, frechet_distances, matched_draws, ratio_over_spaces
from varlab.metrics.distribution.frechet import moments
from varlab.metrics.extractors import Extractor
from varlab.rng import Rng
from varlab.score.image_set import ImageSet, features_of
from varlab.tasks.distributed import collectives

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
    """``NAME/fid`` and its error for each space; with held-out images also the draws of ``matched_draws``, and FDr.

    Draws have the held-out images' classes where both sets have labels.
    """
    values: dict[str, float] = {}
    for name, extractor in extractors.items():
        fake_NF, fake_label_N = _features(samples, extractor, batch)
        train_NF, _ = _features(train, extractor, batch)
        scores = {"fid": frechet_distances([fake_NF], train_NF)[0]}
        scores["fid_error"] = fid_error(fake_NF, moments(train_NF), rng=Rng(seed))
        if held_out is not None:
            val_NF, val_label_M = _features(held_out, extractor, batch)
            if fake_label_N is None or val_label_M is None:
                fake_label_N, val_label_M = (torch.zeros(len(x_NF), dtype=torch.int64) for x_NF in (fake_NF, val_NF))
            scores |= matched_draws(fake_NF, fake_label_N, train_NF, val_NF, val_label_M, draws=draws, rng=Rng(seed))
        values |= {f"{name}/{key}": value for key, value in scores.items()}
    return values | ratio_over_spaces(values)


def _features(images: ImageSet, extractor: Extractor, batch: int) -> tuple[Tensor, Tensor | None]:
    """features_NF, and label_N where all are known, of all ranks, on the CPU."""
    features, labels = [], []
    for numbered, known in features_of(images, extractor, batch=batch):
        features.append(known["features_BF"])
        labels += [] if numbered.label_B is None else [numbered.label_B]
    label_N = collectives.gather_uneven(torch.cat(labels)).cpu() if len(labels) == len(features) else None
    return collectives.gather_uneven(torch.cat(features)).cpu(), label_N
