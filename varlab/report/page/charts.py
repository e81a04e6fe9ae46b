"""Which figures a report shows for each kind of run, with notes on how to read them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from varlab.report.page import style
from varlab.report.page.figures import Bars, Panel, bars, curves, fid_against_flops
from varlab.report.run_kind import RunKind
from varlab.report.variants import Variant

__all__ = ["Chart", "charts"]

LOSSES = (
    Panel("Training loss", ("train/loss",), "images", "nats per token"),
    Panel("Training loss", ("train/loss",), "flops", "nats per token"),
    Panel("Validation NLL", ("val/nll",), "images", "nats per image"),
    Panel("Validation NLL", ("val/nll",), "flops", "nats per image"),
)
SAMPLES = (
    Panel("FID", ("val/fid",), "images", "FID", log=True),
    Panel("Inception score", ("val/inception_score",), "images", "score"),
    Panel("Inception score", ("val/inception_score",), "flops", "score"),
    Panel("Precision and recall", ("val/precision", "val/recall"), "images", "share", names=("precision", "recall")),
    Panel("Precision and recall", ("val/precision", "val/recall"), "flops", "share", names=("precision", "recall")),
    Panel("Accuracy of samples, by the judge", ("val/judged_accuracy",), "images", "share"),
)
LEVELS = (
    Bars("Loss per level", "loss", "nats per token"),
    Bars("Accuracy per level", "accuracy", "tokens predicted correctly (%)", 100.0),
)
CLASSES = (
    Bars("Accuracy by class", "by_class/accuracy", "samples seen as their class (%)", 100.0),
    Bars("Recall by class", "by_class/recall", "real images among the samples (%)", 100.0),
)
RECONSTRUCTION = (
    Panel("Validation PSNR", ("val/psnr",), "images", "dB"),
    Panel("Validation PSNR", ("val/psnr",), "flops", "dB"),
    Panel("rFID", ("val/rfid",), "images", "rFID", log=True),
    Panel("rFID", ("val/rfid",), "flops", "rFID", log=True),
    Panel("Training L1", ("train/l1",), "images", "mean absolute error", log=True),
    Panel("Perceptual distance, training", ("train/perceptual",), "images", "distance", log=True),
    Panel("Codebook loss, training", ("train/vq",), "images", "loss", log=True),
)
CODEBOOK = (
    Bars("Codebook usage per scale", "usage", "codes in use (%)", 100.0),
    Bars("Codebook perplexity per scale", "perplexity", "codes, effective number"),
)
GAN = (
    Panel("Adaptive weight λ", ("train/lambda",), "images", "λ", log=True),
    Panel("Gradient norms, last layer", ("train/grad_rec", "train/grad_gan"), "images", "norm", log=True,
          names=("reconstruction", "adversarial")),
    Panel("Discriminator logits", ("train/logits_real", "train/logits_fake"), "images", "mean logit",
          names=("real", "reconstructed")),
)  # fmt: skip
CLASSIFIER = (
    Panel("Validation accuracy", ("val/accuracy",), "images", "share correct"),
    Panel("Training loss", ("train/loss",), "images", "nats", log=True),
)


@dataclass(frozen=True)
class Chart:
    """A figure with its title, its legend and a note on how to read it."""

    title: str
    svg: str
    variants: list[Variant]  # the legend
    about: str = ""


def charts(kind: RunKind, variants: Sequence[Variant]) -> list[Chart]:
    """The figures for the variants of one kind, without empty ones."""
    draw = {"generator": _generator, "tokenizer": _tokenizer, "classifier": _classifier}.get(kind.model)
    figures = draw(variants) if draw else []
    if kind.name != kind.model:
        figures.append(
            ("Training and validation", curves(variants, _panels(kind), label=f"Training of {kind.name}"), "")
        )
    return [
        Chart(title, svg, [variant for variant in variants if style.is_drawn(variant.colour, svg)], about)
        for title, svg, about in figures
        if svg
    ]


def _panels(kind: RunKind) -> list[Panel]:
    """The training loss, and each number that this kind alone validates."""
    validated = [Panel(f"Validation {c.label}", (c.key,), "images", c.label) for c in kind.extra if "/" in c.key]
    return [Panel("Training loss", ("train/loss",), "images", "loss"), *validated]


def _generator(variants: Sequence[Variant]) -> list[tuple[str, str, str]]:
    levelled = [variant for variant in variants if any(len(run.per_scale("val/loss")) > 1 for run in variant.runs)]
    return [
        ("FID against training compute", fid_against_flops(variants),
         "Dots: during training, with averaged weights. Diamond: the final score under its protocol. If the two use "
         "different numbers of samples, do not compare them."),
        ("Scores of samples during training", curves(variants, SAMPLES, label="Scores of the generators during training"),
         "Of samples with averaged weights. Their number is that of `scores.count`: do not compare them with final scores."),
        ("Loss", curves(variants, LOSSES, label="Loss of the generators"),
         "One colour for each variant, one line for each run. Neighbouring points of long series are averaged."),
        ("Loss per level", bars(levelled, LEVELS, xlabel="level, coarse to fine",
                                label="Validation loss and accuracy per level"),
         "Last validation, mean over runs."),
        ("Classes", bars(variants, CLASSES, xlabel="class", label="Accuracy and recall of each class"),
         "A class that a generator leaves out has little recall; one that it draws badly, little accuracy."),
    ]  # fmt: skip


def _tokenizer(variants: Sequence[Variant]) -> list[tuple[str, str, str]]:
    return [
        ("Reconstruction", curves(variants, RECONSTRUCTION, label="Training of the tokenizers"), ""),
        ("Codebook", bars(variants, CODEBOOK, xlabel="scale, coarse to fine",
                          label="Codebook usage and perplexity per scale"),
         "Perplexity is the exponential of the entropy of code use: so many codes, used equally often, would give the same "
         "entropy."),
        ("Adversarial health", curves(variants, GAN, label="Adversarial health of the tokenizers"),
         "λ scales the adversarial gradient to the size of the reconstruction gradient. If the logits drift far apart, "
         "the discriminator has won."),
    ]  # fmt: skip


def _classifier(variants: Sequence[Variant]) -> list[tuple[str, str, str]]:
    return [("Training", curves(variants, CLASSIFIER, label="Training of the classifiers"), "")]
