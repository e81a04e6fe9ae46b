"""Tables of scores and costs: for people, with mean, spread and the best marked; and for programs, results.csv."""

from __future__ import annotations

import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from varlab.report.run_kind import Column
from varlab.report.runs import Run
from varlab.report.text import csv_text
from varlab.report.variants import Variant
from varlab.run.record import Parent

__all__ = ["Cell", "ScoreRow", "mean_and_spread", "ranked", "results_csv", "score_table"]

CSV_COLUMNS = (
    "name", "kind", "order", "seed", "images", "flops", "tokenizer_flops", "seconds",
    "val_nll", "fid", "inception_score", "precision", "recall", "accuracy", "sampling_flops", "sampling_seconds",
    "fid_ratio", "fid_draws", "fid_val", "nn_ratio", "rfid", "psnr", "state", "run", "protocol",
    "inherited_images", "inherited_flops",
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
    variants: Sequence[Variant], columns: Sequence[Column], *, unranked: Collection[str] = (), most: int | None = None
) -> tuple[list[Column], list[ScoreRow]]:
    """The columns that any variant fills, and a row for each variant: the mean and the sample deviation over its runs.

    The rows are in the order of ``ranked``. The best of each column is marked among the finished variants, ties included.
    unranked: keys of columns whose numbers cannot be compared between these variants. most: rows to return; None: all.
    """
    values = {column: [variant.values(column.key) for variant in variants] for column in columns}
    filled = [column for column in columns if any(values[column])]
    best = {column: _best(column, variants, values[column]) for column in _comparable(filled, unranked)}
    rows = [
        ScoreRow(variant, [_cell(variant, column, best.get(column)) for column in filled])
        for variant in ranked(variants, filled, unranked=unranked)[:most]
    ]
    return filled, rows


def ranked(variants: Sequence[Variant], columns: Sequence[Column], *, unranked: Collection[str] = ()) -> list[Variant]:
    """The variants, finished ones first, from the best to the worst in the first column that ranks and that any fills."""
    leading = next((c for c in _comparable(columns, unranked) if any(v.values(c.key) for v in variants)), None)
    return sorted(variants, key=lambda variant: _rank(variant, leading))


def _comparable(columns: Sequence[Column], unranked: Collection[str]) -> list[Column]:
    return [column for column in columns if column.best and column.key not in unranked]


def _best(column: Column, variants: Sequence[Variant], values: Sequence[Sequence[float]]) -> str | None:
    """The best mean of the finished variants, as the column shows it; None where all show the same."""
    means = [statistics.fmean(own) for variant, own in zip(variants, values, strict=True) if own and variant.finished]
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

    A branch counts its whole course; ``inherited_*`` is the part of it that its trunk trained.

    extra: further columns, of metrics and kinds of training from elsewhere.
    """
    keys = [*CSV_COLUMNS, *dict.fromkeys(column.key for column in extra if column.key not in CSV_COLUMNS)]
    return csv_text(keys, (_results(run, keys) for run in runs))


def _results(run: Run, keys: Sequence[str]) -> list[object]:
    trunk = run.record.parents.get("from", Parent())
    facts = {"inherited_images": trunk.images or None, "inherited_flops": trunk.flops or None,
             "name": run.name, "kind": run.kind, "order": run.order, "seed": run.seed, "state": run.state,
             "run": run.path.as_posix(), "protocol": run.score and run.score.name}  # fmt: skip
    return [facts[key] if key in facts else run.value(key) for key in keys]
