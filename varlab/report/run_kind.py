"""How a report shows the trainings of each kind: heading, columns, and which number decides.

The three kinds of varlab are data here. Any other kind is shown by what its runs hold and logged, and by the part ``report``
of its configuration, if there is one: ``{title: Regressors, columns: {error: min}}``, by names of ``val/*``.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from varlab.report.runs import Run
from varlab.report.text import duration, percent, si, significant, whole

__all__ = ["KINDS", "Column", "RunKind", "run_kind"]


@dataclass(frozen=True)
class Column:
    """A column of a table for people. about: one phrase, shown on hover and in the list of columns."""

    key: str
    label: str
    about: str
    show: Callable[[float], str]
    best: Literal["min", "max", ""] = ""


@dataclass(frozen=True, kw_only=True)
class RunKind:
    """How the trainings of a kind are shown.

    model: the kind of varlab whose figures show them, too; empty: none. quality, cost: columns. extra: those of ``quality``
    that are not varlab's own. study: the columns of a study's table by key. decisive: the key of the verdict's column; or
    empty.
    """

    name: str
    title: str
    model: str = ""
    quality: tuple[Column, ...] = ()
    cost: tuple[Column, ...] = ()
    extra: tuple[Column, ...] = ()
    study: Mapping[str, str] = field(default_factory=dict)
    decisive: str = ""


QUALITY = (
    Column("fid", "FID", "Fréchet distance of samples to the reference, in the extractor's features",
           significant, "min"),
    Column("fid_ratio", "FID ratio", "FID of samples ÷ FID of val images, both to train, equally many: 1 equals real images",
           significant, "min"),
    Column("fdr", "FDr", "the mean of that ratio over several feature spaces: 1 equals real images in all of them",
           significant, "min"),
    Column("sfid", "sFID", "Fréchet distance in features that keep places", significant, "min"),
    Column("kid", "KID", "kernel distance of samples to the reference, unbiased", significant, "min"),
    Column("inception_score", "IS", "inception score: high if each sample has a clear class and all classes occur",
           significant, "max"),
    Column("precision", "Precision", "share of samples that lie among the real images", percent, "max"),
    Column("recall", "Recall", "share of real images that lie among the samples", percent, "max"),
    Column("density", "Density", "of how many real images a sample is among the neighbours, over k: about 1 for real images",
           significant, "max"),
    Column("coverage", "Coverage", "share of real images that have a sample among their neighbours", percent, "max"),
    Column("accuracy", "Accuracy", "share of samples that the judge assigns to the requested class", percent, "max"),
    Column("nn_ratio", "NN ratio", "median distance to the nearest training image, samples ÷ val: copies are near 0",
           significant),
    Column("val_nll", "NLL", "negative log-likelihood of the validation images' tokens, nats per image",
           significant, "min"),
)  # fmt: skip
TOKENIZER = (
    Column("rfid", "rFID", "Fréchet distance of reconstructions to the images they reconstruct", significant, "min"),
    Column(
        "pfid", "pFID", "FID of images decoded from tokens of which some are replaced by near ones", significant, "min"
    ),
    Column("probe", "Probe", "held-out accuracy of a linear classifier of the codes", percent, "max"),
    Column("ris", "rIS", "Inception score of reconstructions", significant, "max"),
    Column("psnr", "PSNR", "peak signal-to-noise ratio of reconstructions, dB", significant, "max"),
    Column("l1", "L1", "mean absolute error, in the scale of the protocol", significant, "min"),
    Column("perceptual", "Perceptual", "perceptual distance of reconstructions", significant, "min"),
)
CLASSIFIER = (
    Column("accuracy", "Accuracy", "share of validation images classified correctly (or of their turned copies)",
           percent, "max"),
    Column("majority", "Guess", "accuracy of a guess that looks at no image: the largest class, or chance", percent),
    Column("loss", "Loss", "cross-entropy on the validation images, nats", significant, "min"),
)  # fmt: skip
COST = (
    Column("images", "Images", "training images consumed by updates", whole),
    Column("flops", "Training FLOPs", "forward and backward pass of the trained parts", si),
    Column("tokenizer_flops", "Tokenizer FLOPs", "training the tokenizer, and encoding while the generator trains", si),
    Column("seconds", "Time", "wall-clock time of the training", duration),
)
SAMPLING_COST = (
    Column("flops_per_sample", "FLOPs / sample", "FLOPs to draw one sample, guidance included", si),
    Column("seconds_per_sample", "Time / sample", "wall-clock time to draw one sample, in batches", duration),
)

KINDS = {
    "generator": RunKind(
        name="generator", title="Generators", model="generator", quality=QUALITY, cost=COST + SAMPLING_COST,
        study={"fid": "FID", "fid_ratio": "FID ratio", "fdr": "FDr", "accuracy": "accuracy", "recall": "recall",
               "val_nll": "val NLL"},
        decisive="fid",
    ),
    "tokenizer": RunKind(
        name="tokenizer", title="Tokenizers", model="tokenizer", quality=TOKENIZER, cost=COST[:2] + COST[3:],
        study={"rfid": "rFID", "psnr": "PSNR", "perceptual": "perceptual", "usage": "codes used",
               "pfid": "pFID", "probe": "probe"},
    ),
    "classifier": RunKind(
        name="classifier", title="Classifiers", model="classifier", quality=CLASSIFIER, cost=COST[:2] + COST[3:],
    ),
}  # fmt: skip
"""The kinds of training of varlab itself, in the order of a report."""


def run_kind(runs: Sequence[Run]) -> RunKind:
    """The kind that these runs have in common, with a column for each score of a metric that is not varlab's own."""
    name = runs[0].kind
    kind = KINDS.get(name) or _foreign(name, runs)
    extra = kind.extra + _own_scores(runs)
    known = {column.key for column in kind.quality}
    return replace(kind, quality=kind.quality + tuple(c for c in extra if c.key not in known), extra=extra)


def _foreign(name: str, runs: Sequence[Run]) -> RunKind:
    base = KINDS.get(runs[0].record.holds, RunKind(name=name, title="", cost=COST[:2] + COST[3:]))
    asked = _mapping(runs[0].config.get("report"))
    ways = _mapping(asked.get("columns")) or dict.fromkeys(_validated(runs), "")
    own = tuple(_column(f"val/{key}", key, way) for key, way in ways.items())
    return replace(
        base,
        name=name,
        title=str(asked.get("title") or f"{name.capitalize()} trainings"),
        quality=own + base.quality if _mapping(asked.get("columns")) else base.quality + own,
        extra=own,
        study=base.study or {column.key: column.label for column in own},
        decisive=next((column.key for column in own if column.best), base.decisive),
    )


def _mapping(value: object) -> Mapping[str, object]:
    return value if isinstance(value, dict) else {}


def _validated(runs: Sequence[Run]) -> Iterable[str]:
    """The names of what was validated, without numbers of single scales."""
    names = dict.fromkeys(key for run in runs for line in run.metrics for key in line if key.startswith("val/"))
    return [name.removeprefix("val/") for name in names if not re.search(r"/\d+$", name)]


def _own_scores(runs: Sequence[Run]) -> tuple[Column, ...]:
    scores = [run.score for run in runs if run.score]
    return tuple(
        _column(key, key, way) for key, way in {k: w for score in scores for k, w in score.best.items()}.items()
    )


def _column(key: str, label: str, way: object) -> Column:
    best: Literal["min", "max", ""] = "min" if way == "min" else "max" if way == "max" else ""
    return Column(key, label, f"{label}, as its own metric or training defines it", significant, best)
