"""Tables of scores and costs: for people, with mean, spread and the best marked; and for programs, results.csv."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from varlab.report.runs import Run
from varlab.report.text import csv_text, duration, percent, si, significant, whole
from varlab.report.variants import Variant

__all__ = ["COLUMNS", "Cell", "Column", "ScoreRow", "mean_and_spread", "results_csv", "score_table"]

CSV_COLUMNS = (
    "name", "kind", "order", "seed", "images", "flops", "tokenizer_flops", "seconds",
    "val_nll", "fid", "inception_score", "precision", "recall", "accuracy", "sampling_flops", "sampling_seconds",
    "fid_ratio", "fid_draws", "fid_val", "nn_ratio", "rfid", "psnr", "state", "run", "protocol",
)  # fmt: skip


@dataclass(frozen=True)
class Column:
    """A column of a table for people. about: one phrase, shown on hover and in the list of columns."""

    key: str
    label: str
    about: str
    show: Callable[[float], str]
    best: Literal["min", "max", ""] = ""


@dataclass(frozen=True)
class Cell:
    """A mean as text; spread: the sample standard deviation over seeds, from two seeds on."""

    text: str
    spread: str = ""
    best: bool = False


@dataclass(frozen=True)
class ScoreRow:
    """A variant's row of a table."""

    variant: Variant
    cells: list[Cell]


QUALITY = (
    Column("fid", "FID", "Fréchet distance of samples to the reference, in the extractor's features",
           significant, "min"),
    Column("fid_ratio", "FID ratio", "FID of samples ÷ FID of val images, both to train, equally many: 1 equals real images",
           significant, "min"),
    Column("inception_score", "IS", "inception score: high if each sample has a clear class and all classes occur",
           significant, "max"),
    Column("precision", "Precision", "share of samples that lie among the real images", percent, "max"),
    Column("recall", "Recall", "share of real images that lie among the samples", percent, "max"),
    Column("accuracy", "Accuracy", "share of samples that the judge assigns to the requested class", percent, "max"),
    Column("nn_ratio", "NN ratio", "median distance to the nearest training image, samples ÷ val: copies are near 0",
           significant),
    Column("val_nll", "NLL", "negative log-likelihood of the validation images' tokens, nats per image",
           significant, "min"),
)  # fmt: skip
TOKENIZER = (
    Column("rfid", "rFID", "Fréchet distance of reconstructions to the images they reconstruct", significant, "min"),
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
COLUMNS = {"generator": (QUALITY, COST + SAMPLING_COST), "tokenizer": (TOKENIZER, COST[:2] + COST[3:]),
           "classifier": (CLASSIFIER, COST[:2] + COST[3:])}  # fmt: skip


def score_table(
    variants: Sequence[Variant], columns: Sequence[Column], *, unranked: Collection[str] = ()
) -> tuple[list[Column], list[ScoreRow]]:
    """The columns that any variant fills, and a row for each variant: the mean and the sample deviation over its runs.

    Finished variants come first, ordered by the first ranked column. The best of each column is marked among them, ties
    included. unranked: keys of columns whose numbers cannot be compared between these variants.
    """
    filled = [column for column in columns if any(variant.values(column.key) for variant in variants)]
    ranked = [column for column in filled if column.best and column.key not in unranked]
    best = {column: _best(column, variants) for column in ranked}
    rows = [ScoreRow(variant, [_cell(variant, column, best.get(column)) for column in filled]) for variant in variants]
    return filled, sorted(rows, key=lambda row: _rank(row.variant, next(iter(ranked), None)))


def _best(column: Column, variants: Sequence[Variant]) -> str | None:
    """The best mean of the finished variants, as the column shows it; None where all show the same."""
    means = [
        statistics.fmean(values) for variant in variants if variant.finished and (values := variant.values(column.key))
    ]
    if len(set(map(column.show, means))) < 2:
        return None
    return column.show(min(means) if column.best == "min" else max(means))


def _cell(variant: Variant, column: Column, best: str | None) -> Cell:
    mean, spread = mean_and_spread(variant.values(column.key))
    if mean is None:
        return Cell(text="")
    text = column.show(mean)
    return Cell(text, column.show(spread) if spread else "", best=variant.finished and text == best)


def _rank(variant: Variant, column: Column | None) -> tuple[bool, bool, float]:
    """A sorting key: finished before unfinished, known before unknown, better before worse."""
    mean, _ = mean_and_spread(variant.values(column.key) if column else [])
    sign = -1 if column and column.best == "max" else 1
    return not variant.finished, mean is None, sign * (mean or 0)


def mean_and_spread(numbers: Sequence[float]) -> tuple[float | None, float | None]:
    """The mean and the sample standard deviation (n - 1); None where there are too few numbers."""
    mean = statistics.fmean(numbers) if numbers else None
    return mean, statistics.stdev(numbers) if len(numbers) > 1 else None


def results_csv(runs: Sequence[Run]) -> str:
    """The text of results.csv: a row for each training, with raw numbers in SI units, empty where it has none."""
    return csv_text(CSV_COLUMNS, (_results(run) for run in runs))


def _results(run: Run) -> list[object]:
    facts = {"name": run.name, "kind": run.kind, "order": run.order, "seed": run.seed, "state": run.state,
             "run": run.path.as_posix(), "protocol": run.score and run.score.name}  # fmt: skip
    return [facts[key] if key in facts else run.value(key) for key in CSV_COLUMNS]
