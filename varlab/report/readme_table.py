"""The table of a study, in Markdown, written into its README between two marks by the command that made it."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from varlab.config import Config
from varlab.errors import VarlabError
from varlab.files import write_text
from varlab.report.compare import Variant, group_variants
from varlab.report.read import Run, Score, number
from varlab.report.stats.paired import LEVEL, Difference, Interval, holm, interval, paired
from varlab.report.stats.scaling_study import laws, scaling_table, studies
from varlab.report.tables import main_score, value
from varlab.report.units import si, significant

__all__ = ["study_table", "write_section"]

_METRICS = {
    "generator": {"fid": "FID", "accuracy": "accuracy", "recall": "recall", "val_nll": "val NLL"},
    "tokenizer": {"rfid": "rFID", "psnr": "PSNR", "perceptual": "perceptual", "usage": "codes used"},
}


@dataclass(frozen=True)
class _Row:
    """A variant, or one of the settings of the sampler that it was scored with. scores: of each run, by seed."""

    label: str
    variant: Variant
    scores: Mapping[int, tuple[Run, Score | None]]

    def numbers(self, key: str) -> dict[int, float]:
        """A metric by seed."""
        found = {seed: _number(run, score, key) for seed, (run, score) in self.scores.items()}
        return {seed: x for seed, x in found.items() if x is not None}


def study_table(runs: Sequence[Run], *, against: str = "first") -> str:
    """A row for each variant of the first kind there is, and for each setting of the sampler where there were several: means
    over seeds with 95% intervals, cost; below it paired differences, each row's to the ``first`` one, the ``previous`` one, or
    the one of that label; where sizes were studied, the laws instead. Unfinished runs are named and left out.

    Raises:
        VarlabError: no finished training among the runs, or no row that ``against`` names.
    """
    variants = group_variants([run for run in runs if run.finished])
    if not variants:
        raise VarlabError("There is no finished training to make a table of: run the study's command to its end.")
    kind = variants[0].kind
    rows = [row for variant in variants if variant.kind == kind for row in _settings(variant, runs)]
    metrics = {key: title for key, title in _METRICS.get(kind, {}).items() if any(row.numbers(key) for row in rows)}
    scaling = [line for study in studies(runs) for line in ["", *scaling_table(laws(study))]]
    lines = [*_table(rows, metrics), *(scaling or _differences(rows, metrics, against))]
    missing = [run for run in runs if not run.finished and run.kind == kind]
    if missing:
        lines += ["", f"Not finished, and not in the table: {', '.join(run.path.name for run in missing)}."]
    return "\n".join(lines)


def write_section(readme: Path, section: str, text: str) -> None:
    """Replace what stands between ``<!-- section -->`` and ``<!-- /section -->`` in a file.

    Raises:
        VarlabError: the file has no such marks.
    """
    begin, end = f"<!-- {section} -->", f"<!-- /{section} -->"
    content = readme.read_text(encoding="utf-8") if readme.is_file() else ""
    before, found, rest = content.partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise VarlabError(f"{readme} has no lines {begin} and {end} to write the table between: put them there.")
    write_text(readme, f"{before}{begin}\n{text}\n{end}{after}")


def _settings(variant: Variant, runs: Sequence[Run]) -> list[_Row]:
    """One row; several where the same runs were scored, with equally many samples, under several settings of the sampler."""
    most = max((_samples(score) for run in variant.runs for score in run.scores), default=0)
    kept = {run.path: [score for score in run.scores if _samples(score) == most] for run in variant.runs}
    samplers = {_canonical(score): score.protocol.get("sampler") for scores in kept.values() for score in scores}
    if len(samplers) < 2 and not _several(runs):
        scores = {run.seed or 0: (run, main_score(run, runs)) for run in variant.runs}
        return [_Row(variant.label, variant, scores)]
    rows = []
    for name, sampler in sorted(samplers.items(), key=lambda item: _strength(item[1])):
        found = {
            run.seed or 0: (run, next((s for s in kept[run.path] if _canonical(s) == name), None))
            for run in variant.runs
        }
        rows.append(_Row(f"{variant.label} · {_setting(sampler)}", variant, found))
    return rows


def _several(runs: Sequence[Run]) -> bool:
    """Whether the study compares settings of the sampler: some run was scored under two, with equally many samples."""
    return any(
        len({_canonical(score) for score in run.scores if _samples(score) == max(map(_samples, run.scores))}) > 1
        for run in runs
    )


def _samples(score: Score) -> int:
    return int(score.protocol.get("n") or 0)


def _canonical(score: Score) -> str:
    return json.dumps(score.protocol.get("sampler"), sort_keys=True)


_OFF: Mapping[str, Any] = {"cfg": 0.0, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
"""Values with which a setting changes nothing."""


def _on(sampler: Mapping[str, Any] | None) -> Config:
    return {key: value for key, value in (sampler or {}).items() if key in _OFF and value != _OFF[key]}


def _strength(sampler: Mapping[str, Any] | None) -> tuple[int, list[float]]:
    """Plain sampling first; then what it adds, and how much of it."""
    on = _on(sampler)
    return len(on), [float(on.get(key, 0)) for key in _OFF]


def _setting(sampler: Mapping[str, Any] | None) -> str:
    on = _on(sampler)
    return ", ".join(f"{key.replace('_', '-')} {value:g}" for key, value in on.items()) or "plain"


def _number(run: Run, score: Score | None, key: str) -> float | None:
    if key == "usage":
        shares = [number(x) for name, x in (score.values if score else {}).items() if name.startswith("usage/")]
        known = [x for x in shares if x is not None]
        return statistics.fmean(known) if known else None
    return value(run, score, key)


def _table(rows: Sequence[_Row], metrics: Mapping[str, str]) -> list[str]:
    titles = ["", "seeds", "images", "FLOPs", "seconds", *metrics.values()]
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for row in rows:
        cost = [_mean(row.variant, key, show) for key, show in _COSTS]
        cells = [_interval(interval(list(found.values()))) if (found := row.numbers(key)) else "–" for key in metrics]
        seeds = str(min([len(row.variant.runs), *(len(found) for key in metrics if (found := row.numbers(key)))]))
        lines.append(f"| {' | '.join([row.label, seeds, *cost, *cells])} |")
    return lines


def _differences(rows: Sequence[_Row], metrics: Mapping[str, str], against: str) -> list[str]:
    fixed = None if against == "previous" else _named(rows, against)
    lines = list[str]()
    p: dict[str, dict[str, float]] = {title: {} for title in metrics.values()}
    for above, other in zip([None, *rows], rows, strict=False):
        base = fixed or above
        if base is None or base is other:
            continue
        found = {title: paired(base.numbers(key), other.numbers(key)) for key, title in metrics.items()}
        known = {
            title: difference for title, difference in found.items() if difference is not None and difference.n > 1
        }
        if known:
            told = "; ".join(_told(title, difference) for title, difference in known.items())
            seeds = min(difference.n for difference in known.values())
            lines.append(f"- **{other.label}** less {base.label}, paired over {seeds} seeds: {told}.")
            for title, difference in known.items():
                p[title][other.label] = difference.p
    return ["", *lines, *_together(p)] if lines else []


def _together(p: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Which comparisons stand when all of one metric are looked at together."""
    most = max(map(len, p.values()))
    if most < 2:
        return []
    stand = {
        title: [f"{label} (p {value:.2g})" for label, value in holm(of).items() if value < 1 - LEVEL]
        for title, of in p.items()
    }
    named = "; ".join(f"{title}: {', '.join(labels)}" for title, labels in stand.items() if labels) or "none"
    return ["", f"Each p is of one test. By Holm's correction for {most} comparisons a metric, these stand: {named}."]


def _named(rows: Sequence[_Row], label: str) -> _Row:
    found = rows[0] if label == "first" else next((row for row in rows if row.label == label), None)
    if found is None:
        labels = ", ".join(row.label for row in rows)
        raise VarlabError(f"against={label} names no row: give first, previous, or one of {labels}.")
    return found


def _told(title: str, found: Difference) -> str:
    span = f"[{_signed(found.low)}, {_signed(found.high)}]"
    return f"{title} {_signed(found.mean)} {span}, p {found.p:.2g}" + ("" if found.clear else ", not clear of zero")


_COSTS: tuple[tuple[str, Callable[[float], str]], ...] = (
    ("images", lambda x: f"{x:,.0f}"),
    ("flops", lambda x: f"{x:.2e}"),
    ("seconds", si),
)


def _mean(variant: Variant, key: str, show: Callable[[float], str]) -> str:
    totals = [total for run in variant.runs if (total := run.total(key)) is not None]
    return show(statistics.fmean(totals)) if totals else "–"


def _interval(found: Interval) -> str:
    if math.isnan(found.low):
        return significant(found.mean)
    return f"{significant(found.mean)} [{significant(found.low)}, {significant(found.high)}]"


def _signed(number: float) -> str:
    return f"{'+' if number > 0 else '−' if number < 0 else ''}{significant(abs(number))}"
