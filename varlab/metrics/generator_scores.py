"""Scores of a generator from one pass through an extractor: FID, Inception score, precision, recall, class accuracy."""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor, nn
from torchmetrics import CatMetric
from torchmetrics.classification import MulticlassAccuracy, MulticlassStatScores

from varlab.errors import VarlabError
from varlab.metrics.distribution.frechet import FID, Moments
from varlab.metrics.distribution.inception_score import FileInceptionScore, SeededInceptionScore
from varlab.metrics.distribution.kernel_distance import KID
from varlab.metrics.distribution.manifold_scores import ManifoldScores

__all__ = ["GenerationScores"]


class GenerationScores(nn.Module):
    """FID, Inception score, precision, recall and class accuracy of the same features, equal on any number of ranks.

    num_features: F of the extractor. num_classes: of the data if the logits are for these classes, None if they are not
    (then there is no accuracy). content: whether the logits are of what images show (else there is no Inception score).
    splits: of the Inception score (10 in the paper). neighbours, manifold, density_neighbours: see ManifoldScores. seed: of
    the splits and of the manifold's subset. Padding must be removed before.
    inception: order and split_size of FileInceptionScore; None for random parts. kid: subsets and size; None for no KID.
    has_real_images: False where stored moments are all there is of the reference: then only FID, sFID and IS are computed.
    num_spatial: features of sFID (Nash et al. 2021); None for no sFID. reference: stored moments of the real images' features
    ("mu") and spatial features ("mu_s"), in place of those of the real images that are added.
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
        density_neighbours: int | None = None,
        inception: Mapping[str, object] | None = None,
        kid: Mapping[str, int] | None = None,
        num_spatial: int | None = None,
        reference: Mapping[str, Moments] | None = None,
        has_real_images: bool = True,
    ):
        super().__init__()
        stored = reference or {}
        self.fid = FID(num_features=num_features, reference=stored.get("mu"))
        self.sfid = FID(num_features=num_spatial, reference=stored.get("mu_s")) if num_spatial else None
        self.inception_score: SeededInceptionScore | FileInceptionScore | None = None
        if content and inception is not None:
            self.inception_score = FileInceptionScore(**inception, splits=splits, seed=seed)  # type: ignore[arg-type]
        elif content:
            self.inception_score = SeededInceptionScore(splits=splits, seed=seed)
        self.manifolds = ManifoldScores(
            neighbours=neighbours, manifold=manifold, seed=seed, density_neighbours=density_neighbours
        )
        self._has_real_images = has_real_images
        self.kid = KID(**kid) if kid is not None and has_real_images else None
        self.accuracy = MulticlassAccuracy(num_classes, average="micro") if num_classes is not None else None
        self.counts = MulticlassStatScores(num_classes, average=None) if num_classes is not None else None
        self.label_N = CatMetric()

    def update_real(
        self,
        features_BF: Tensor,
        *,
        row_B: Tensor | None = None,
        spatial_BS: Tensor | None = None,
        label_B: Tensor | None = None,
    ) -> None:
        """Add features of reference images. row_B: their numbers. spatial_BS: for sFID. label_B: for ``by_class``."""
        self._update(features_BF, row_B, spatial_BS, real=True, label_B=label_B)

    def update_fake(
        self,
        features_BF: Tensor,
        logits_BK: Tensor,
        label_B: Tensor | None,
        *,
        row_B: Tensor | None = None,
        spatial_BS: Tensor | None = None,
    ) -> None:
        """Add features and logits of samples, and the labels they were sampled for, if these are known."""
        self._update(features_BF, row_B, spatial_BS, real=False)
        if isinstance(self.inception_score, FileInceptionScore):
            if row_B is None:
                raise VarlabError("An Inception score in the order of a file needs the samples' numbers (row_B).")
            self.inception_score.update(logits_BK, row_B)
        elif self.inception_score is not None:
            self.inception_score.update(logits_BK)
        if label_B is not None:
            self.label_N.update(label_B)
            if self.accuracy is not None:
                self.accuracy.update(logits_BK, label_B)
            if self.counts is not None:
                self.counts.update(logits_BK, label_B)

    def _update(
        self,
        features_BF: Tensor,
        row_B: Tensor | None,
        spatial_BS: Tensor | None,
        *,
        real: bool,
        label_B: Tensor | None = None,
    ) -> None:
        self.fid.update(features_BF, real=real)
        if self._has_real_images:
            self.manifolds.update(features_BF, real=real, label_B=label_B)
        if self.kid is not None:
            self.kid.update(features_BF, real, row_B)
        if self.sfid is not None and spatial_BS is not None:
            self.sfid.update(spatial_BS, real=real)

    def features(self) -> tuple[Tensor, Tensor, Tensor]:
        """(real_NF, fake_NF, fake_label_N) of all ranks, for varlab.metrics.comparison. All ranks must call it together."""
        return *self.manifolds.features(), self.label_N.compute()

    def by_class(self) -> dict[str, list[float | None]]:
        """accuracy and recall of each class, by number; None for a class without images. Call it after ``compute``.

        accuracy: the share of a class's samples in which the extractor sees it. recall: the share of a class's real images
        that lie among the samples (of any class): near 0 for a class that a generator leaves out. Each is left out where the
        labels it needs are not known. All ranks must call it together.
        """
        known: dict[str, Tensor] = {}
        if self.counts is not None and self.counts.update_called:
            right_C, of_C = self.counts.compute()[:, [0, 4]].T.double()
            known["accuracy"] = right_C / of_C
        if self.manifolds.recall_by_class is not None:
            known["recall"] = self.manifolds.recall_by_class
        return {name: [None if math.isnan(x) else x for x in values_C.tolist()] for name, values_C in known.items()}

    def compute(self) -> dict[str, float]:
        """fid, inception_score and its _std (of two splits or more), precision, recall, accuracy; sfid, kid and its _std,
        density and coverage, if they are asked for.

        Those of classes are left out where the logits are of none. All ranks must call it together. Raises VarlabError for
        too few images, and for a score that is not finite.
        """
        # first: it raises the error for too few images
        manifolds = self.manifolds.compute() if self._has_real_images else {}
        scores = {"fid": self.fid.compute()}
        if self.sfid is not None:
            scores["sfid"] = self.sfid.compute()
        if self.inception_score is not None:
            mean, deviation = self.inception_score.compute()
            scores |= {"inception_score": mean, "inception_score_std": deviation}
        scores |= manifolds
        if self.kid is not None:
            mean, deviation = self.kid.compute()
            scores |= {"kid": mean, "kid_std": deviation}
        if self.accuracy is not None and self.accuracy.update_called:
            scores["accuracy"] = self.accuracy.compute()
        plain = {name: float(score) for name, score in scores.items()}
        if math.isnan(plain.get("inception_score_std", 0.0)):
            del plain["inception_score_std"]  # a single split has none
        if not all(math.isfinite(score) for score in plain.values()):
            raise VarlabError(f"A score is not a finite number ({plain}): check the samples for NaN.")
        return plain
