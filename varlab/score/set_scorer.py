"""Scores of any set of images against a reference: one pass through the images of each, shared by all ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from varlab.errors import VarlabError
from varlab.metrics.comparison import fid_error
from varlab.metrics.distribution.inception_score import FileInceptionScore
from varlab.metrics.distribution.repeated_images import RepeatedImages
from varlab.metrics.extractors import Extractor
from varlab.metrics.generator_scores import GenerationScores
from varlab.metrics.own_metrics import OwnMetrics
from varlab.rng import Rng
from varlab.score.image_set import ImageSet, features_of
from varlab.score.reference import Reference

__all__ = ["SetScorer"]


class SetScorer:
    """The scores of images, as ``GenerationScores``, and how many of them are copies of another one among them.

    sheets: by the name of a protocol (empty for a single one), the arguments of ``GenerationScores`` that ``conf/metrics``
    sets, and the part of the reference that is compared with: moments, images, or None for what is there.
    After the call, ``notes`` says what a reader of the scores must know, and ``by_class`` has the scores of each class.
    """

    def __init__(
        self,
        *,
        samples: ImageSet,
        reference: Reference,
        extractor: Extractor,
        sheets: Mapping[str, tuple[Mapping[str, object], str | None]],
        seed: int,
        batch: int,
        own: OwnMetrics | None = None,
    ):
        self._rng = Rng(seed)
        self._samples, self._reference, self._extract, self._batch = samples, reference, extractor, batch
        self.own = own or OwnMetrics({})
        self.notes: list[str] = []
        self.by_class: dict[str, list[float | None]] = {}
        self._sheets = {name: self._sheet(*asked, seed=seed) for name, asked in sheets.items()}

    def _sheet(self, settings: Mapping[str, object], compared_with: str | None, *, seed: int) -> GenerationScores:
        stored = {} if compared_with == "images" else self._reference.moments
        # There is no sFID where the reference stores the moments of other features alone.
        spatial = self._extract.num_spatial if not stored or "mu_s" in stored else None
        return GenerationScores(
            num_features=self._extract.num_features,
            num_classes=self._extract.num_classes,
            content=self._extract.knows_content,
            seed=seed,
            num_spatial=spatial,
            reference=stored,
            has_real_images=self._reference.images is not None,
            **settings,  # type: ignore[arg-type]
        ).to(next((p.device for p in self._extract.parameters()), torch.device("cpu")))

    def __call__(self) -> dict[str, float]:
        """The scores by name. VarlabError for images of another size than the reference's, or too few of them."""
        if (real := self._reference.images) is not None:
            self._add_reference(real)
        repeated = self._add_samples()
        values: dict[str, float] = {}
        for name, sheet in self._sheets.items():
            scores = sheet.compute() | self._error_of_fid(sheet)
            self.by_class |= sheet.by_class()
            values |= {f"{name}/{key}" if name else key: value for key, value in scores.items()}
            if isinstance(of := sheet.inception_score, FileInceptionScore) and of.was_sorted:
                self.notes.append("the samples are sorted by class, so they were shuffled for the Inception score")
        return self.own.compute() | values | {"duplicates": repeated}

    def _error_of_fid(self, sheet: GenerationScores) -> dict[str, float]:
        """Where the sheet holds the samples' features: not where the reference has moments alone."""
        if self._reference.images is None:
            return {}
        with sheet.fid.sync_context():
            reference = sheet.fid.moments(real=True)
        return {"fid_error": fid_error(sheet.manifolds.features()[1], reference, rng=self._rng)}

    def _add_reference(self, real: ImageSet) -> None:
        if tuple(real.image_size) != tuple(self._samples.image_size):
            (h, w), (height, width) = self._samples.image_size, real.image_size
            raise VarlabError(
                f"The samples {self._samples.name} have {h}×{w} pixels, the reference {self._reference.name} has "
                f"{height}×{width}: compare images of one size."
            )
        for numbered, known in features_of(real, self._extract, batch=self._batch):
            for sheet in self._sheets.values():
                sheet.update_real(
                    known["features_BF"],
                    row_B=numbered.row_B,
                    spatial_BS=known.get("spatial_BS"),
                    label_B=numbered.label_B,
                )
            if len(numbered.img_u8_B3HW):
                self.own.update(numbered.img_u8_B3HW, real=True, **known)

    def _add_samples(self) -> float:
        """Add this rank's samples; return how many of all ranks' are the same as an earlier one."""
        repeats = RepeatedImages()
        for numbered, known in features_of(self._samples, self._extract, batch=self._batch):
            labels = {} if numbered.label_B is None else {"label_B": numbered.label_B}
            for sheet in self._sheets.values():
                sheet.update_fake(
                    known["features_BF"],
                    known["logits_BK"],
                    numbered.label_B,
                    row_B=numbered.row_B,
                    spatial_BS=known.get("spatial_BS"),
                )
            if len(numbered.img_u8_B3HW):
                self.own.update(numbered.img_u8_B3HW, real=False, **known, **labels)
            repeats.update(numbered.img_u8_B3HW.cpu())
        return float(repeats.compute())
