"""Scores of a generator from one pass through an extractor: FID, Inception score, precision, recall, class accuracy."""

from __future__ import annotations

import math
import warnings

from torch import Tensor, nn
from torchmetrics import CatMetric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.utilities.data import dim_zero_cat

from varlab.errors import VarlabError
from varlab.metrics.features import sorted_rows
from varlab.metrics.precision_recall import PrecisionRecall
from varlab.rng import Rng


class _PassThrough(nn.Module):
    """A feature network for torchmetrics that gets features in place of images, and returns them in float64."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features_BF: Tensor) -> Tensor:
        return features_BF.double()


class FID(FrechetInceptionDistance):
    """torchmetrics' FID (Heusel et al. 2017, eq. 6) over features, ``update(features_BF, real)``, in float64."""

    def __init__(self, *, num_features: int):
        super().__init__(feature=_PassThrough(num_features))


class SeededInceptionScore(InceptionScore):
    """torchmetrics' Inception score (Salimans et al. 2016) over logits: ``update(logits_BK)``.

    The score is a mean over ``splits`` random parts. Here the parts depend only on the logits and ``seed``, not on the
    order of samples (samples sorted by class would score a fifth), the number of ranks or torch's global generator.
    """

    features: list[Tensor]

    def __init__(self, *, splits: int, seed: int):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "will save all extracted features": that is intended
            super().__init__(feature=_PassThrough(0), splits=splits)
        # "cat" gathers one tensor per rank; the default gathers each batch and hangs if ranks have different numbers of them
        self.add_state("features", [], dist_reduce_fx="cat")
        self.rng = Rng(seed)

    def compute(self) -> tuple[Tensor, Tensor]:
        """(mean, standard deviation over the splits); the deviation is NaN for one split."""
        self.features = [sorted_rows(dim_zero_cat(self.features))]
        with self.rng.scope("metrics"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*degrees of freedom")  # with one split; the NaN says so
            return super().compute()


class GenerationScores(nn.Module):
    """FID, Inception score, precision, recall and class accuracy of the same features, equal on any number of ranks.

    num_features: F of the extractor. num_classes: of the data if the logits are for these classes, None if they are not
    (then there is no accuracy). content: whether the logits are of what images show (else there is no Inception score).
    splits: of the Inception score (10 in the paper). neighbours, manifold: see PrecisionRecall. seed: of the splits and of
    the manifold's subset. Padding must be removed before.
    """

    def __init__(
        self,
        *,
        num_features: int,
        num_classes: int | None,
        splits: int,
        neighbours: int,
        manifold: int | None,
        seed: int,
        content: bool = True,
    ):
        super().__init__()
        self.fid = FID(num_features=num_features)
        self.inception_score = SeededInceptionScore(splits=splits, seed=seed) if content else None
        self.precision_recall = PrecisionRecall(neighbours=neighbours, manifold=manifold, seed=seed)
        self.accuracy = MulticlassAccuracy(num_classes, average="micro") if num_classes is not None else None
        self.label_N = CatMetric()

    def update_real(self, features_BF: Tensor) -> None:
        """Add features of reference images."""
        self.fid.update(features_BF, real=True)
        self.precision_recall.update(features_BF, real=True)

    def update_fake(self, features_BF: Tensor, logits_BK: Tensor, label_B: Tensor) -> None:
        """Add features and logits of samples, and the labels they were sampled for."""
        self.fid.update(features_BF, real=False)
        self.precision_recall.update(features_BF, real=False)
        if self.inception_score is not None:
            self.inception_score.update(logits_BK)
        self.label_N.update(label_B)
        if self.accuracy is not None:
            self.accuracy.update(logits_BK, label_B)

    def features(self) -> tuple[Tensor, Tensor, Tensor]:
        """(real_NF, fake_NF, fake_label_N) of all ranks, for varlab.metrics.comparison. All ranks must call it together."""
        return *self.precision_recall.features(), self.label_N.compute()

    def compute(self) -> dict[str, float]:
        """fid, inception_score and its _std (of two splits or more), precision, recall, accuracy.

        Those of classes are left out where the logits are of none. All ranks must call it together. Raises VarlabError for
        too few images, and for a score that is not finite.
        """
        precision, recall = self.precision_recall.compute()  # first: it raises the error for too few images
        scores = {"fid": self.fid.compute()}
        if self.inception_score is not None:
            mean, deviation = self.inception_score.compute()
            scores |= {"inception_score": mean, "inception_score_std": deviation}
        scores |= {"precision": precision, "recall": recall}
        if self.accuracy is not None:
            scores["accuracy"] = self.accuracy.compute()
        plain = {name: float(score) for name, score in scores.items()}
        if math.isnan(plain.get("inception_score_std", 0.0)):
            del plain["inception_score_std"]  # a single split has none
        if not all(math.isfinite(score) for score in plain.values()):
            raise VarlabError(f"A score is not a finite number ({plain}): check the samples for NaN.")
        return plain
