"""Which figures a report shows for which kind of run, and what to know when reading them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from varlab.report.compare import Variant
from varlab.report.page import figures, style
from varlab.report.page.figures import Panel
from varlab.report.read import Score

__all__ = ["Chart", "charts"]

LOSSES = (
    Panel("Training loss", ("train/loss",), "images", "nats per token"),
    Panel("Training loss", ("train/loss",), "flops", "nats per token"),
    Panel("Validation NLL", ("val/nll",), "images", "nats per image"),
    Panel("Validation NLL", ("val/nll",), "flops", "nats per image"),
)
RECONSTRUCTION = (
    Panel("Validation PSNR", ("val/psnr",), "images", "dB"),
    Panel("Training L1", ("train/l1",), "images", "mean absolute error", log=True),
    Panel("Perceptual distance, training", ("train/perceptual",), "images", "distance", log=True),
    Panel("Codebook loss, training", ("train/vq",), "images", "loss", log=True),
)
GAN = (
    Panel("Adaptive weight λ", ("train/lambda",), "images", "λ", log=True),
    Panel("Gradient norms, last layer", ("train/grad_rec", "train/grad_gan"), "images", "norm", log=True,
          names=("reconstruction", "adversarial")),
    Panel("Discriminator logits", ("train/logits_real", "train/logits_fake"), "images", "mean logit",
          names=("real", "reconstructed")),
)  # fmt: skip
CLASSIFIER = (
    Panel("Validation accuracy", ("val/accuracy",), "images", "share right"),
    Panel("Training loss", ("train/loss",), "images", "nats", log=True),
)


@dataclass(frozen=True)
class Chart:
    """A figure with its title and a sentence or two of guidance."""

    title: str
    svg: str
    variants: list[Variant]  # who is in it: the legend
    about: str


def charts(kind: str, variants: Sequence[Variant], scores: dict[Path, Score | None]) -> list[Chart]:
    """The figures for the variants of one kind; those without anything to show are left out."""
    draw = {"generator": _generator, "tokenizer": _tokenizer, "classifier": _classifier}[kind]
    return [
        Chart(title, svg, [variant for variant in variants if style.is_drawn(variant.colour, svg)], about)
        for title, svg, about in draw(variants, scores)
        if svg
    ]


Drawn = list[tuple[str, str | None, str]]


def _generator(variants: Sequence[Variant], scores: dict[Path, Score | None]) -> Drawn:
    return [
        ("FID against training compute", figures.fid_against_flops(variants, scores),
         "Dots: while training, on averaged weights. Diamond: the final score under its protocol; where that draws "
         "another number of samples than the dots do, it is not on their scale."),
        ("Loss", figures.curves(variants, LOSSES, label="Loss of the generators"),
         "A colour a variant, a line a run. Long series are averaged over neighbouring log points."),
        ("Loss per level", figures.per_level(_with_levels(variants)), "Last validation, mean over runs."),
    ]  # fmt: skip


def _with_levels(variants: Sequence[Variant]) -> list[Variant]:
    return [variant for variant in variants if any(len(run.per_scale("val/loss")) > 1 for run in variant.runs)]


def _tokenizer(variants: Sequence[Variant], scores: dict[Path, Score | None]) -> Drawn:
    return [
        ("Reconstruction", figures.curves(variants, RECONSTRUCTION, label="Training of the tokenizers"), ""),
        ("Codebook", figures.codebook(variants, scores),
         "Perplexity is the exponential of the entropy of code use: as many codes, used equally, would look the same."),
        ("Adversarial health", figures.curves(variants, GAN, label="Adversarial health of the tokenizers"),
         "λ brings the adversarial gradient to the size of the reconstruction's. Logits that drift far apart mean a "
         "discriminator that has won."),
    ]  # fmt: skip


def _classifier(variants: Sequence[Variant], _: dict[Path, Score | None]) -> Drawn:
    return [("Training", figures.curves(variants, CLASSIFIER, label="Training of the classifiers"), "")]
