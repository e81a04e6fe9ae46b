"""Scores of a generator from one feature pass: FID, Inception score, precision, recall, class accuracy."""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.utilities.data import dim_zero_cat

from varlab.errors import VarlabError
from varlab.metrics.precision_recall import PrecisionRecall
from varlab.metrics.rows import canonical
from varlab.rng import Rng


class _Given(nn.Module):
    """The feature network that torchmetrics asks for, where the features are there already."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features

    def forward(self, features_BF: Tensor) -> Tensor:
        return features_BF.double()


class FID(FrechetInceptionDistance):
    """torchmetrics' FID (Heusel et al. 2017, eq. 6) over features, ``update(features_BF, real)``, in float64."""

    def __init__(self, *, num_features: int):
        super().__init__(feature=_Given(num_features))


class SeededInceptionScore(InceptionScore):
    """torchmetrics' Inception score (Salimans et al. 2016) over logits: ``update(logits_BK)``.

    The score is a mean over ``splits`` random parts. Here the parts follow from the logits and ``seed`` alone, not from
    the order of samples (class-sorted ones would score a fifth), the number of ranks or torch's global generator.
    """

    features: list[Tensor]

    def __init__(self, *, splits: int, num_classes: int, seed: int):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # "will save all extracted features": known, and wanted
            super().__init__(feature=_Given(num_classes), splits=splits)
        # "cat" gathers one tensor per rank; the default goes batch by batch and hangs where ranks have unequally many
        self.add_state("features", [], dist_reduce_fx="cat")
        self.rng = Rng(seed)

    def compute(self) -> tuple[Tensor, Tensor]:
        """(mean, standard deviation over the splits); the deviation is NaN for one split."""
        self.features = [canonical(dim_zero_cat(self.features))]
        with self.rng.scope("metrics"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*degrees of freedom")  # of one split; the NaN says it
            return super().compute()


class GenerationScores:
    """FID, Inception score, precision, recall and class accuracy, all fed from one feature pass, equal on any number of
    ranks.

    num_features, num_logits: F and K of the extractor. num_classes: of the data where the logits are those classes,
    None where they are not (then there is no accuracy). splits: of the Inception score (10 in the paper). neighbours,
    manifold: see PrecisionRecall. seed: of the splits and of the manifold's draw. Padding must be masked before it
    comes here.
    """

    def __init__(
        self,
        *,
        num_features: int,
        num_logits: int,
        num_classes: int | None,
        splits: int,
        neighbours: int,
        manifold: int | None,
        seed: int,
    ):
        self.fid = FID(num_features=num_features)
        self.inception_score = SeededInceptionScore(splits=splits, num_classes=num_logits, seed=seed)
        self.precision_recall = PrecisionRecall(neighbours=neighbours, manifold=manifold, seed=seed)
        self.accuracy = MulticlassAccuracy(num_classes, average="micro") if num_classes is not None else None

    def metrics(self) -> list[Metric]:
        """The torchmetrics inside."""
        own: list[Metric] = [self.fid, self.inception_score, self.precision_recall]
        return own if self.accuracy is None else [*own, self.accuracy]

    def to(self, device: torch.device | str) -> GenerationScores:
        """Moves the states; returns itself."""
        for metric in self.metrics():
            metric.to(device)
        return self

    def update_real(self, features_BF: Tensor) -> None:
        """Add features of reference images."""
        self.fid.update(features_BF, real=True)
        self.precision_recall.update(features_BF, real=True)

    def update_fake(self, features_BF: Tensor, logits_BK: Tensor, label_B: Tensor) -> None:
        """Add features and logits of samples, and the classes that were asked for."""
        self.fid.update(features_BF, real=False)
        self.precision_recall.update(features_BF, real=False)
        self.inception_score.update(logits_BK)
        if self.accuracy is not None:
            self.accuracy.update(logits_BK, label_B)

    def features(self) -> tuple[Tensor, Tensor]:
        """(real_NF, fake_NF) of all ranks, which varlab.metrics.comparison takes. Every rank must call this at once."""
        return self.precision_recall.features()

    def compute(self) -> dict[str, float]:
        """fid, inception_score and its _std (of two splits or more), precision, recall, accuracy (if it can be told).

        Every rank must call this at once. Raises VarlabError for too few images, and for a score that is not finite.
        """
        precision, recall = self.precision_recall.compute()  # first: it is the one that says when images are missing
        mean, deviation = self.inception_score.compute()
        scores = {"fid": self.fid.compute(), "inception_score": mean, "inception_score_std": deviation}
        scores |= {"precision": precision, "recall": recall}
        if self.accuracy is not None:
            scores["accuracy"] = self.accuracy.compute()
        plain = {name: float(score) for name, score in scores.items()}
        if math.isnan(plain["inception_score_std"]):
            del plain["inception_score_std"]  # of a single split there is none
        if not all(math.isfinite(score) for score in plain.values()):
            raise VarlabError(f"a score is not a finite number ({plain}): look at the samples, they may hold NaN.")
        return plain
