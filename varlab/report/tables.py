"""Numbers for people (cells with a mean, a spread and the best one marked) and for programs (results.csv)."""

from __future__ import annotations

import csv
import io
import statistics
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from varlab.config import Config
from varlab.report.compare import Variant
from varlab.report.read import Run, Score
from varlab.report.units import duration, percent, si, significant, whole

__all__ = ["CSV_COLUMNS", "Cell", "Column", "Row", "main_score", "results_csv", "results_row", "score_table"]

CSV_COLUMNS = (
    "name", "kind", "order", "seed", "images", "flops", "tokenizer_flops", "seconds",
    "val_nll", "fid", "inception_score", "precision", "recall", "accuracy", "sampling_flops", "sampling_seconds",
    "fid_ratio", "fid_draws", "fid_val", "nn_ratio", "rfid", "psnr", "state", "run", "protocol",
)  # fmt: skip

_FALLBACK = {"val_nll": "val/nll", "accuracy": "val/accuracy", "psnr": "val/psnr", "l1": "val/l1", "loss": "val/loss",
             "perceptual": "val/perceptual"}  # fmt: skip
"""Where a run without a score of that name keeps the number: the last validation. Protocol-bound scores have none."""


@dataclass(frozen=True)
class Column:
    """A column of a table for people."""

    key: str
    label: str
    about: str  # one sentence, shown on hover and read by screen readers
    show: Callable[[float], str]
    best: Literal["min", "max", ""] = ""


@dataclass(frozen=True)
class Cell:
    text: str
    spread: str = ""  # sample standard deviation over seeds, where there are at least two
    best: bool = False


@dataclass(frozen=True)
class Row:
    variant: Variant
    cells: list[Cell]


QUALITY = (
    Column("fid", "FID", "Fréchet distance of samples to the reference, in the extractor's features",
           significant, "min"),
    Column("fid_ratio", "FID ratio", "FID of equal-sized draws ÷ FID of val, both to train: 1 is as near as real images",
           significant, "min"),
    Column("inception_score", "IS", "inception score: sure of each sample's class, and all classes present",
           significant, "max"),
    Column("precision", "Precision", "share of samples that lie among the real images",
           percent, "max"),
    Column("recall", "Recall", "share of real images that lie among the samples",
           percent, "max"),
    Column("accuracy", "Accuracy", "share of samples that the judge gives the class that was asked for",
           percent, "max"),
    Column("nn_ratio", "NN ratio", "median distance to the nearest training image, samples ÷ val: copies are near 0",
           significant),
    Column("val_nll", "NLL", "negative log-likelihood of the validation images' tokens, nats per image",
           significant, "min"),
)  # fmt: skip
TOKENIZER = (
    Column("rfid", "rFID", "Fréchet distance of reconstructions to the images they reconstruct", significant, "min"),
    Column("psnr", "PSNR", "peak signal-to-noise ratio of reconstructions, dB", significant, "max"),
    Column("l1", "L1", "mean absolute error, in the scale of the run's protocol", significant, "min"),
    Column("perceptual", "Perceptual", "perceptual distance of reconstructions", significant, "min"),
)
CLASSIFIER = (
    Column("accuracy", "Accuracy", "share of validation images classified right", percent, "max"),
    Column("loss", "Loss", "cross-entropy on the validation images, nats", significant, "min"),
)
COST = (
    Column("images", "Images", "training images consumed by updates", whole),
    Column("flops", "Training FLOPs", "forward and backward of what is trained", si),
    Column(
        "tokenizer_flops",
        "Tokenizer FLOPs",
        "its tokenizer's own training, and encoding while the generator trains",
        si,
    ),
    Column("seconds", "Time", "training time on the clock", duration),
)
SAMPLING_COST = (
    Column("flops_per_sample", "FLOPs / sample", "FLOPs to draw one sample, guidance included", si),
    Column("seconds_per_sample", "Time / sample", "time on the clock to draw one sample, in batches", duration),
)
COLUMNS = {"generator": (QUALITY, COST + SAMPLING_COST), "tokenizer": (TOKENIZER, COST[:2] + COST[3:]),
           "classifier": (CLASSIFIER, COST[:2] + COST[3:])}  # fmt: skip


def main_score(run: Run, runs: Sequence[Run]) -> Score | None:
    """The score a run is shown with: the protocol most runs of its kind share; the newest where that doesn't decide."""
    shared = Counter(score.name for other in runs if other.kind == run.kind for score in other.scores)
    return max(run.scores, key=lambda score: (shared[score.name], score.modified), default=None)


def value(run: Run, score: Score | None, key: str) -> float | None:
    """A number of a run: what it spent, what it scored under the protocol, else its last validation."""
    if key in ("images", "flops", "tokenizer_flops", "seconds"):
        return run.total(key)
    if key in ("flops_per_sample", "seconds_per_sample"):
        return _per_sample(score, "sampling_" + key.removesuffix("_per_sample"))
    found = score.get(key) if score else None
    if found is None and key in _FALLBACK and not (key == "accuracy" and run.kind != "classifier"):
        return run.last(_FALLBACK[key])  # a generator's val/accuracy is of tokens, not of samples' classes
    return found


def _per_sample(score: Score | None, key: str) -> float | None:
    total, count = (score.get(key), score.protocol.get("n")) if score else (None, None)
    return total / count if total is not None and isinstance(count, int) and count > 0 else None


def score_table(
    variants: Sequence[Variant],
    columns: Sequence[Column],
    scores: dict[Path, Score | None],
    *,
    unranked: Collection[str] = (),
) -> tuple[list[Column], list[Row]]:
    """Columns that any variant fills, and a row a variant: mean over its runs, sample deviation from two runs on.

    Finished variants come first, ordered by the first ranked column, and the best of each column is marked among them,
    ties included. Columns in ``unranked`` hold numbers that can't be compared between these variants.
    """
    contested = [column for column in columns if column.best and column.key not in unranked]
    numbers = {
        column.key: [[value(run, scores.get(run.path), column.key) for run in variant.runs] for variant in variants]
        for column in columns
    }
    filled = [column for column in columns if any(x is not None for row in numbers[column.key] for x in row)]
    best = {column.key: _best(column, numbers[column.key], variants) for column in filled if column in contested}
    rows = [
        Row(variant, [_cell(column, numbers[column.key][i], i in best.get(column.key, ())) for column in filled])
        for i, variant in enumerate(variants)
    ]
    leading = next((column for column in filled if column in contested), None)
    places = _places(leading, numbers[leading.key] if leading else [[]] * len(rows), variants)
    return filled, [row for _, row in sorted(zip(places, rows, strict=True), key=lambda pair: pair[0])]


def _best(column: Column, rows: Sequence[Sequence[float | None]], variants: Sequence[Variant]) -> set[int]:
    """Indices of the finished variants whose mean, as shown, is the best; none where all are equal."""
    means = {i: mean_and_spread(row)[0] for i, row in enumerate(rows) if variants[i].finished}
    contest = {i: mean for i, mean in means.items() if mean is not None}
    if len({column.show(mean) for mean in contest.values()}) < 2:
        return set()
    winner = column.show((min if column.best == "min" else max)(contest.values()))
    return {i for i, mean in contest.items() if column.show(mean) == winner}


def _places(
    column: Column | None, rows: Sequence[Sequence[float | None]], variants: Sequence[Variant]
) -> list[tuple[bool, bool, float, int]]:
    """Sorting keys: finished before unfinished, known before unknown, better before worse, given order for the rest."""
    means = [mean_and_spread(row)[0] for row in rows]
    sign = -1 if column and column.best == "max" else 1
    return [(not variants[i].finished, mean is None, sign * (mean or 0), i) for i, mean in enumerate(means)]


def _cell(column: Column, numbers: Sequence[float | None], best: bool) -> Cell:
    mean, spread = mean_and_spread(numbers)
    if mean is None:
        return Cell(text="")
    return Cell(text=column.show(mean), spread=column.show(spread) if spread else "", best=best)


def mean_and_spread(numbers: Sequence[float | None]) -> tuple[float | None, float | None]:
    """Mean, and the sample standard deviation (n - 1), over the numbers there are; None where too few."""
    known = [x for x in numbers if x is not None]
    mean = statistics.fmean(known) if known else None
    return mean, statistics.stdev(known) if len(known) > 1 else None


def results_row(run: Run, score: Score | None) -> Config:
    """One line of results.csv: raw numbers in SI units, None where the run has none."""
    told = {"name": run.name, "kind": run.kind, "order": run.order, "seed": run.seed, "state": run.state,
            "run": run.path.as_posix(), "protocol": score.name if score else None}  # fmt: skip
    return {key: told[key] if key in told else value(run, score, key) for key in CSV_COLUMNS}


def results_csv(runs: Sequence[Run], scores: dict[Path, Score | None]) -> str:
    """The text of results.csv: a header, then a row for every training run."""
    text = io.StringIO()
    writer = csv.DictWriter(text, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(results_row(run, scores.get(run.path)) for run in runs)
    return text.getvalue()
