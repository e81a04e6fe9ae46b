"""The table of a study, in Markdown, written between two marks of its README."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from varlab.config import Config
from varlab.errors import VarlabError
from varlab.files import write_text
from varlab.report.page.verdict import one_tokenizer
from varlab.report.runs import Run
from varlab.report.score_files import Score, number
from varlab.report.stats.paired_test import LEVEL, PairedDifference, holm, mean_interval, paired_difference, stands_out
from varlab.report.stats.scaling_study import find_studies, fit_laws, scaling_table
from varlab.report.stats.space_differences import agreement_of_ranks, spaces_of
from varlab.report.text import markdown_table, si, signed, significant, whole
from varlab.report.variants import Variant, group_variants, kinds_of

__all__ = ["study_table", "write_section"]

_COSTS: Mapping[str, Callable[[float], str]] = {"images": whole, "flops": lambda x: f"{x:.2e}", "seconds": si}


def study_table(runs: Sequence[Run], *, against: str = "first") -> str:
    """Means over seeds with 95% intervals and costs: a row for each variant of the first kind among the runs.

    A variant that was scored under several settings of the sampler has a row for each. Below the table are paired
    differences of each row to the ``first`` row, the ``previous`` one, or the one labelled ``against``; for a scaling
    study, its laws instead. Unfinished runs are named and left out.

    Raises:
        VarlabError: the runs hold no finished training, or ``against`` names no row.
    """
    variants = group_variants([run for run in runs if run.finished])
    if not variants:
        raise VarlabError("There is no finished training to make a table of: run the study's command to its end.")
    kind, chosen = kinds_of(variants)[0]
    several = any(len({_sampler(score) for score in _largest(run.scores)}) > 1 for run in runs)
    rows = [row for variant in chosen for row in _rows(variant, split=several)]
    spaces = spaces_of(rows)
    further = {key: f"FID in {name}" for name, key in spaces.items() if key not in kind.study}
    columns = {**kind.study, **further}
    metrics = {key: title for key, title in columns.items() if any(row.by_seed(key, _value) for row in rows)}
    scaling = [
        line
        for study in find_studies(runs)
        for line in [*(["", study.saving] if study.saving else []), "", *scaling_table(fit_laws(study))]
    ]
    lines = [*_table(rows, metrics), *(scaling or _differences(rows, metrics, against))]
    if spaces and (agreement := agreement_of_ranks(rows, spaces)):
        lines += ["", agreement]
    if caution := one_tokenizer(rows):
        lines += ["", caution]
    missing = [run.path.name for run in runs if not run.finished and run.kind == kind.name]
    if missing:
        lines += ["", f"Not finished, and not in the table: {', '.join(missing)}."]
    return "\n".join(lines)


def write_section(readme: Path, section: str, text: str) -> None:
    """Replace the text between ``<!-- section -->`` and ``<!-- /section -->`` in a file.

    Raises:
        VarlabError: the file has no such marks.
    """
    begin, end = f"<!-- {section} -->", f"<!-- /{section} -->"
    content = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    before, opened, rest = content.partition(begin)
    _, closed, after = rest.partition(end)
    if not opened or not closed:
        raise VarlabError(f"{readme} has no lines {begin} and {end} for the table: add them where it belongs.")
    write_text(readme, f"{before}{begin}\n{text}\n{end}{after}")


# -- settings of the sampler ---------------------------------------------------------------------------------------------

_NEUTRAL: Mapping[str, float] = {"cfg": 0.0, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
"""The value with which each setting changes nothing."""


def _rows(variant: Variant, *, split: bool) -> list[Variant]:
    """The variant as a row; if settings of the sampler are compared, a row for each, with the scores of that setting."""
    most = max((score.samples for run in variant.runs for score in run.scores), default=0)
    scores = {run.path: [score for score in run.scores if score.samples == most] for run in variant.runs}
    settings = {_sampler(score): _changes(score) for kept in scores.values() for score in kept}
    if len(settings) < 2 and not split:
        return [variant]
    rows = []
    for sampler, changes in sorted(settings.items(), key=lambda item: _strength(item[1])):
        runs = tuple(
            replace(run, score=next((score for score in scores[run.path] if _sampler(score) == sampler), None))
            for run in variant.runs
        )
        name = ", ".join(f"{key.replace('_', '-')} {value:g}" for key, value in changes.items()) or "plain"
        rows.append(replace(variant, label=f"{variant.label} · {name}", runs=runs))
    return rows


def _largest(scores: Sequence[Score]) -> list[Score]:
    return [score for score in scores if score.samples == max(other.samples for other in scores)]


def _sampler(score: Score) -> str:
    return json.dumps(score.protocol.get("sampler"), sort_keys=True)


def _changes(score: Score) -> Config:
    """The sampler's settings that change something."""
    settings = score.protocol.get("sampler")
    known = settings.items() if isinstance(settings, dict) else ()
    return {key: value for key, value in known if key in _NEUTRAL and number(value) not in (None, _NEUTRAL[key])}


def _strength(changes: Config) -> tuple[int, list[float]]:
    """A sorting key: plain sampling first, then by the number and the size of the changes."""
    return len(changes), [float(changes.get(key, 0)) for key in _NEUTRAL]


# -- the table and the differences ---------------------------------------------------------------------------------------


def _value(run: Run, key: str) -> float | None:
    """A metric of a run; ``usage`` is the mean over scales."""
    if key != "usage":
        return run.value(key)
    values = run.score.values if run.score else {}
    shares = [x for name in values if name.startswith("usage/") and (x := number(values[name])) is not None]
    return statistics.fmean(shares) if shares else None


def _table(rows: Sequence[Variant], metrics: Mapping[str, str]) -> list[str]:
    header = ["", "seeds", "images", "FLOPs", "seconds", *metrics.values()]
    return markdown_table(header, [_cells(row, metrics) for row in rows])


def _cells(row: Variant, metrics: Mapping[str, str]) -> list[str]:
    numbers = [list(row.by_seed(key, _value).values()) for key in metrics]
    seeds = min([len(row.seeds) or len(row.runs), *(len(values) for values in numbers if values)])
    return [row.label, str(seeds), *(_cost(row, key) for key in _COSTS), *map(_interval, numbers)]


def _cost(row: Variant, key: str) -> str:
    totals = row.values(key)
    return _COSTS[key](statistics.fmean(totals)) if totals else "–"


def _interval(values: Sequence[float]) -> str:
    if not values:
        return "–"
    mean = mean_interval(values)
    if math.isnan(mean.low):
        return significant(mean.mean)
    return f"{significant(mean.mean)} [{significant(mean.low)}, {significant(mean.high)}]"


def _differences(rows: Sequence[Variant], metrics: Mapping[str, str], against: str) -> list[str]:
    """A line for each compared row with at least two seeds, then the differences that stand out."""
    fixed = None if against == "previous" else _labelled(rows, against)
    lines: list[str] = []
    p: dict[tuple[str, str], float] = {}
    for previous, row in zip([None, *rows], rows, strict=False):
        base = fixed or previous
        if base is None or base is row:
            continue
        pairs = {
            title: paired_difference(base.by_seed(key, _value), row.by_seed(key, _value))
            for key, title in metrics.items()
        }
        known = {title: pair for title, pair in pairs.items() if pair is not None and pair.n > 1}
        if known:
            seeds = min(pair.n for pair in known.values())
            described = "; ".join(_describe(title, pair) for title, pair in known.items())
            lines.append(f"- **{row.label}** minus {base.label}, paired over {seeds} seeds: {described}.")
        p |= {(title, row.label): pair.p for title, pair in known.items()}
    return ["", *lines, *_outstanding(p)] if lines else []


def _labelled(rows: Sequence[Variant], label: str) -> Variant:
    if label == "first":
        return rows[0]
    row = next((row for row in rows if row.label == label), None)
    if row is None:
        labels = ", ".join(row.label for row in rows)
        raise VarlabError(f"against={label} names no row: use first, previous, or one of {labels}.")
    return row


def _describe(title: str, pair: PairedDifference) -> str:
    return f"{title} {signed(pair.mean)} [{signed(pair.low)}, {signed(pair.high)}], p {pair.p:.2g}"


def _outstanding(p: Mapping[tuple[str, str], float]) -> list[str]:
    """The differences that stand out, by metric and row, when all comparisons of the table are taken together."""
    named: dict[str, list[str]] = {}
    for (title, label), value in holm(p).items():
        if stands_out(value):
            named.setdefault(title, []).append(f"{label} (p {value:.2g})")
    found = "; ".join(f"{title}: {', '.join(labels)}" for title, labels in named.items()) or "none"
    family = f"After Holm's correction for all {len(p)} comparisons above" if len(p) > 1 else "As a single test"
    return [
        "",
        f"Each p above is of a single test. {family}, these differences stand out (p below {1 - LEVEL:.2f}): {found}.",
    ]
