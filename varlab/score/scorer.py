"""Scores of a generator: sample images, run an extractor once, and update every metric with its output."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from varlab.config import Config
from varlab.data import BaseDataModule
from varlab.metrics.comparison import (
    Neighbours,
    fid_error,
    frechet_distances,
    matched_draws,
    ratio_over_spaces,
)
from varlab.metrics.distribution.frechet import moments
from varlab.metrics.distribution.repeated_images import RepeatedImages
from varlab.metrics.extractors import Extractor
from varlab.metrics.features import Rows
from varlab.metrics.generator_scores import GenerationScores
from varlab.metrics.own_metrics import OwnMetrics
from varlab.rng import Rng
from varlab.score.image_sampler import ImageSampler
from varlab.score.image_set import FollowedImages, Progress, ShardImages, features_of, followed, outputs_of
from varlab.score.neighbour_strip import find_neighbours
from varlab.tasks.distributed import collectives
from varlab.types import VarlabError


class GeneratorScorer:
    """FID, Inception score, precision, recall and accuracy of ``n`` samples against the training split, on all ranks.

    The features of real images are computed once. An extractor whose classes are not those of the data gives no accuracy, one
    whose classes are of no content no Inception score. splits, neighbours, manifold, density_neighbours, inception, kid: see
    ``GenerationScores``. draws: see ``matched_draws``. spaces: further extractors, by name: ``compare`` adds their FID, its
    ratio to that of held-out images, and the mean ratio. own: further metrics; those that compare with the reference see the
    training split, too. progress: of ``Progress``.
    After ``compare``: ``neighbours``, samples with the numbers of their nearest training images, and ``by_class``, scores of
    each class.
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
        density_neighbours: int | None = None,
        inception: Mapping[str, object] | None = None,
        kid: Mapping[str, int] | None = None,
        spaces: Mapping[str, Extractor] | None = None,
        progress: Progress = lambda done, total, what: None,
    ):
        self._spaces = dict(spaces or {})
        self._fake: dict[str, list[Tensor]] = {}
        self._more: Config = {"density_neighbours": density_neighbours, "inception": inception, "kid": kid}
        self.source, self._extract, self._data, self._n = source, extractor, data, n
        self._progress = progress
        self._splits, self._neighbours, self._manifold, self._draws = splits, neighbours, manifold, draws
        self.own = own or OwnMetrics({})
        self._real: dict[str, tuple[Tensor, Tensor]] = {}
        self._elsewhere: dict[str, dict[str, Tensor]] = {}  # features in the other spaces, by split
        self._rows: dict[str, Tensor] = {}  # this rank's numbers of images in their split, and of samples ("fake")
        self._repeats = RepeatedImages()
        self.neighbours: Neighbours | None = None
        self.by_class: dict[str, list[float | None]] = {}

    def _features(self, split: str) -> tuple[Tensor, Tensor]:
        """This rank's features of a split's images, and their labels."""
        if split not in self._real:
            features, labels, rows = [], [], []
            others: dict[str, list[Tensor]] = {name: [] for name in self._spaces}
            images = FollowedImages(ShardImages(self._data, split), f"{split} images", self._progress)
            size, device = self.source.batch, self.source.device
            for (img_u8_B3HW, row_B, label_B), known in features_of(images, self._extract, batch=size, device=device):
                self.source.check()
                assert label_B is not None
                img_u8_B3HW = img_u8_B3HW.to(device)
                if split == "train" and len(img_u8_B3HW):
                    self.own.update(img_u8_B3HW, real=True, label_B=label_B, **known)
                features.append(known["features_BF"])
                labels.append(label_B)
                rows.append(row_B)
                for name, other in self._spaces.items():
                    others[name].append(outputs_of(other, img_u8_B3HW, batch=min(size, images.n))["features_BF"])
            self._elsewhere[split] = {name: torch.cat(rows) for name, rows in others.items()}
            self._real[split], self._rows[split] = (torch.cat(features), torch.cat(labels)), torch.cat(rows)
        return self._real[split]

    def _scores(self) -> tuple[GenerationScores, OwnMetrics]:
        if self._n < 2 * collectives.world_size():
            raise VarlabError(f"{self._n} samples are too few for scores: ask for more.")
        extract, self.own = self._extract.to(self.source.device), self.own.to(self.source.device)
        self._spaces = {name: other.to(self.source.device) for name, other in self._spaces.items()}
        self._fake = {name: [] for name in self._spaces}
        self._repeats = RepeatedImages().to(self.source.device)
        real_NF, real_label_N = self._features("train")
        own = self.own.fresh()
        scores = GenerationScores(
            num_features=extract.num_features,
            num_classes=extract.num_classes,
            content=extract.knows_content,
            splits=self._splits,
            neighbours=self._neighbours,
            manifold=self._manifold,
            seed=self.source.seed,
            **self._more,
        ).to(self.source.device)
        size = min(self.source.batch, self._n)
        parts = collectives.share(self._n, self.source.batch)
        ids_N = torch.cat([torch.arange(part.start, part.stop) for part in parts])
        self._rows["fake"] = ids_N.to(self.source.device)
        drawn = zip(ids_N.split(self.source.batch), self.source.images(ids_N), strict=True)
        images = followed(drawn, lambda batch: len(batch[0]), self._n, "samples", self._progress)
        for ids_B, (img_u8_B3HW, label_B) in images:
            known = outputs_of(extract, img_u8_B3HW, batch=size)
            scores.update_fake(known["features_BF"], known["logits_BK"], label_B, row_B=ids_B.to(label_B.device))
            for name, other in self._spaces.items():
                self._fake[name].append(outputs_of(other, img_u8_B3HW, batch=size)["features_BF"])
            self._repeats.update(img_u8_B3HW)
            own.update(img_u8_B3HW, real=False, label_B=label_B, **known)
        scores.update_real(real_NF, label_B=real_label_N)
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
        val_NF, val_label_M = (collectives.gather_uneven(part) for part in self._features("val"))
        rng = Rng(self.source.seed)
        draws = matched_draws(fake_NF, fake_label_N, real_NF, val_NF, val_label_M, draws=self._draws, rng=rng)
        rows = {"fake_row_N": self._rows["fake"], "train_row_N": self._rows["train"]}
        self.neighbours, distances = find_neighbours(Rows(fake_NF), Rows(real_NF), val_NF, **rows)
        values |= draws | distances
        values["duplicates"] = float(self._repeats.compute())
        self.by_class = scores.by_class()
        values["fid_error"] = fid_error(fake_NF, moments(real_NF), rng=rng)
        for name in self._spaces:
            fake_NF = collectives.gather_uneven(torch.cat(self._fake[name]))
            real_NF, val_NF = (collectives.gather_uneven(self._elsewhere[split][name]) for split in ("train", "val"))
            draws = matched_draws(fake_NF, fake_label_N, real_NF, val_NF, val_label_M, draws=self._draws, rng=rng)
            draws["fid"] = frechet_distances([fake_NF], real_NF)[0]
            draws["fid_error"] = fid_error(fake_NF, moments(real_NF), rng=rng)
            values |= {f"{name}/{key}": value for key, value in draws.items()}
        return own.compute() | values | (ratio_over_spaces(values) if self._spaces else {})
