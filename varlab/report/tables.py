"""Tables of scores and costs: for people, with mean, spread and the best marked; and for programs, results.csv."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from varlab.report.run_kind import Column
from varlab.report.runs import Run
from varlab.report.text import csv_text
from varlab.report.variants import Variant

__all__ = ["Cell", "ScoreRow", "mean_and_spread", "results_csv", "score_table"]

CSV_COLUMNS = (
    "name", "kind", "order", "seed", "images", "flops", "tokenizer_flops", "seconds",
    "val_nll", "fid", "inception_score", "precision", "recall", "accuracy", "sampling_flops", "sampling_seconds",
    "fid_ratio", "fid_draws", "fid_val", "nn_ratio", "rfid", "psnr", "state", "run", "protocol",
)  # fmt: skip


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


def results_csv(runs: Sequence[Run], extra: Sequence[Column] = ()) -> str:
    """The text of results.csv: a row for each training, with raw numbers in SI units, empty where it has none.

    extra: further columns, of metrics and kinds of training from elsewhere.
    """
    keys = [*CSV_COLUMNS, *dict.fromkeys(column.key for column in extra if column.key not in CSV_COLUMNS)]
    return csv_text(keys, (_results(run, keys) for run in runs))


def _results(run: Run, keys: Sequence[str]) -> list[object]:
    facts = {"name": run.name, "kind": run.kind, "order": run.order, "seed": run.seed, "state": run.state,
             "run": run.path.as_posix(), "protocol": run.score and run.score.name}  # fmt: skip
    return [facts[key] if key in facts else run.value(key) for key in keys]
