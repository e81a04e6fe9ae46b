"""Scores of a generator: sample images, run an extractor once, and update every metric with its output."""

from __future__ import annotations

import torch
from torch import Tensor
from torchmetrics.utilities.distributed import gather_all_tensors

from varlab.data import BaseDataModule
from varlab.metrics.comparison import matched_draws, nearest_scores
from varlab.metrics.extractors import Extractor
from varlab.metrics.generator_scores import GenerationScores
from varlab.metrics.own_metrics import OwnMetrics
from varlab.rng import Rng
from varlab.score.image_sampler import ImageSampler
from varlab.tasks.distributed import collectives
from varlab.types import VarlabError, without_padding


class GeneratorScorer:
    """FID, Inception score, precision, recall and accuracy of ``n`` samples against the training split, on all ranks.

    The features of real images are computed once. An extractor whose classes are not those of the data gives no accuracy, one
    whose classes are of no content no Inception score. splits, neighbours, manifold: see ``GenerationScores``. draws: see
    ``matched_draws``. own: further metrics; those that compare with the reference see the training split, too.
    """

    def __init__(
        self,
        *,
        source: ImageSampler,
        extractor: Extractor,
        data: BaseDataModule,
        n: int,
        splits: int,
        neighbours: int,
        manifold: int | None,
        draws: int,
        own: OwnMetrics | None = None,
    ):
        self.source, self._extract, self._data, self._n = source, extractor, data, n
        self._splits, self._neighbours, self._manifold, self._draws = splits, neighbours, manifold, draws
        self.own = own or OwnMetrics({})
        self._real: dict[str, tuple[Tensor, Tensor]] = {}

    def _features(self, split: str) -> tuple[Tensor, Tensor]:
        """This rank's features of a split's images, and their labels."""
        if split not in self._real:
            features, labels = [], []
            loader = self._data.eval_loader(split, collectives.rank(), collectives.world_size())
            for batch in without_padding(loader, self.source.device):
                self.source.check()
                features_BF, logits_BK = self._extract(batch.img_u8_B3HW)
                if split == "train":
                    known = {"features_BF": features_BF, "logits_BK": logits_BK, "label_B": batch.label_B}
                    self.own.update(batch.img_u8_B3HW, real=True, **known)
                features.append(features_BF)
                labels.append(batch.label_B)
            self._real[split] = torch.cat(features), torch.cat(labels)
        return self._real[split]

    def _scores(self) -> tuple[GenerationScores, OwnMetrics]:
        if self._n < 2 * collectives.world_size():
            raise VarlabError(f"{self._n} samples are too few for scores: ask for more.")
        extract, self.own = self._extract.to(self.source.device), self.own.to(self.source.device)
        real_NF = self._features("train")[0]
        own = self.own.fresh()
        scores = GenerationScores(
            num_features=extract.num_features,
            num_classes=extract.num_classes,
            content=extract.knows_content,
            splits=self._splits,
            neighbours=self._neighbours,
            manifold=self._manifold,
            seed=self.source.seed,
        ).to(self.source.device)
        ids_N = torch.arange(self._n)[collectives.rank() :: collectives.world_size()]
        for img_u8_B3HW, label_B in self.source.images(ids_N):
            features_BF, logits_BK = extract(img_u8_B3HW)
            scores.update_fake(features_BF, logits_BK, label_B)
            own.update(img_u8_B3HW, real=False, features_BF=features_BF, logits_BK=logits_BK, label_B=label_B)
        scores.update_real(real_NF)
        return scores, own

    def __call__(self) -> dict[str, float]:
        """The scores by name."""
        scores, own = self._scores()
        return own.compute() | scores.compute()

    def compare(self) -> dict[str, float]:
        """The scores, and the comparison with held-out images (see ``varlab.metrics.comparison``)."""
        scores, own = self._scores()
        values = scores.compute()
        real_NF, fake_NF, fake_label_N = scores.features()
        val_NF, val_label_M = (_of_all_ranks(part) for part in self._features("val"))
        rng = Rng(self.source.seed)
        draws = matched_draws(fake_NF, fake_label_N, real_NF, val_NF, val_label_M, draws=self._draws, rng=rng)
        return own.compute() | values | draws | nearest_scores(fake_NF, real_NF, val_NF)


def _of_all_ranks(rows: Tensor) -> Tensor:
    return torch.cat(gather_all_tensors(rows)) if collectives.world_size() > 1 else rows
