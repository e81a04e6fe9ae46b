"""Scores of any set of images against a reference: one pass through the images of each, shared by all ranks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from varlab.errors import VarlabError
from varlab.metrics.comparison import Neighbours, fid_error, matched_draws
from varlab.metrics.distribution.inception_score import FileInceptionScore
from varlab.metrics.distribution.repeated_images import RepeatedImages
from varlab.metrics.extractors import Extractor
from varlab.metrics.generator_scores import GenerationScores
from varlab.metrics.own_metrics import OwnMetrics
from varlab.rng import Rng
from varlab.score.image_set import ImageSet, features_of, gathered_features
from varlab.score.neighbour_strip import find_neighbours
from varlab.score.reference import Reference
from varlab.tasks.distributed import collectives

__all__ = ["SetScorer"]


class SetScorer:
    """The scores of images, as ``GenerationScores``, and how many of them are copies of another one among them.

    sheets: by the name of a protocol (empty for a single one), the arguments of ``GenerationScores`` that ``conf/metrics``
    sets, and the part of the reference that is compared with: moments, images, or None for what is there.
    held_out: real images that are not in the reference, which are compared with it as the samples are (``matched_draws`` with
    so many ``draws``, ``nearest_scores``); None for none.
    After the call, ``notes`` says what a reader of the scores must know, ``by_class`` has the scores of each class, and
    ``neighbours`` samples with their nearest images of the reference, if it has images.
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
        held_out: ImageSet | None = None,
        draws: int = 0,
    ):
        self._rng, self._held_out, self._draws = Rng(seed), held_out, draws
        self._samples, self._reference, self._extract, self._batch = samples, reference, extractor, batch
        self.own = own or OwnMetrics({})
        self.notes: list[str] = []
        self.by_class: dict[str, list[float | None]] = {}
        self.neighbours: Neighbours | None = None
        self._rows: dict[str, list[Tensor]] = {"real": [], "fake": []}  # this rank's numbers of images
        self._labels: list[Tensor] = []  # of this rank's samples
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
        values |= self._compare(next(iter(self._sheets.values())))
        return self.own.compute() | values | {"duplicates": repeated}

    def _compare(self, sheet: GenerationScores) -> dict[str, float]:
        """Find ``neighbours`` among the reference's images; compare the held-out images with these, too."""
        if self._reference.images is None:
            return {}
        real_NF, fake_NF = sheet.manifolds.rows()
        rows = {f"{of}_row_N": torch.cat(self._rows[key]) for of, key in (("fake", "fake"), ("train", "real"))}
        if self._held_out is None:
            self.neighbours, _ = find_neighbours(fake_NF, real_NF, None, **rows)
            return {}
        val_NF, val_label_M = gathered_features(self._held_out, self._extract, batch=self._batch)
        val_NF = val_NF.to(real_NF.device)
        self.neighbours, scores = find_neighbours(fake_NF, real_NF, val_NF, **rows)
        label_N = None
        if len(self._labels) == len(self._rows["fake"]) and val_label_M is not None:
            label_N = collectives.gather_uneven(torch.cat(self._labels))
            if not torch.isin(val_label_M, label_N.cpu()).all():
                label_N = None  # samples of other classes, or too few of them
        draws = matched_draws(fake_NF[:], label_N, real_NF, val_NF, val_label_M, draws=self._draws, rng=self._rng)
        return scores | draws

    def _error_of_fid(self, sheet: GenerationScores) -> dict[str, float]:
        """Where the sheet holds the samples' features: not where the reference has moments alone."""
        if self._reference.images is None:
            return {}
        with sheet.fid.sync_context():
            reference = sheet.fid.moments(real=True)
        return {"fid_error": fid_error(sheet.manifolds.rows()[1][:], reference, rng=self._rng)}

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
            self._rows["real"].append(numbered.row_B)
            if len(numbered.img_u8_B3HW):
                self.own.update(numbered.img_u8_B3HW, real=True, **known)

    def _add_samples(self) -> float:
        """Add this rank's samples; return how many of all ranks' are the same as an earlier one."""
        repeats = RepeatedImages()
        for numbered, known in features_of(self._samples, self._extract, batch=self._batch):
            labels = {} if numbered.label_B is None else {"label_B": numbered.label_B}
            self._labels += labels.values()
            self._rows["fake"].append(numbered.row_B)
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
