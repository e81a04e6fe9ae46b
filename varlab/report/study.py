"""The table of a study, in Markdown, written into its README between two marks by the command that made it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from varlab.errors import VarlabError
from varlab.report.compare import Variant, group_variants
from varlab.report.paired import Interval, interval, paired
from varlab.report.read import Run
from varlab.report.tables import main_score, value
from varlab.report.units import si, significant

__all__ = ["study_table", "write_section"]

_METRICS = (("fid", "FID"), ("accuracy", "accuracy"), ("recall", "recall"), ("val_nll", "val NLL"))
_KEPT = {"tokenizer": (("rfid", "rFID"), ("psnr", "PSNR"), ("perceptual", "perceptual"))}


def study_table(runs: Sequence[Run]) -> str:
    """A row for each variant of the first kind there is: means over seeds with 95% intervals, cost; below it the paired
    differences of each to the first. Unfinished runs are named and left out.

    Raises:
        VarlabError: no finished training among the runs.
    """
    done = [run for run in runs if run.finished]
    variants = group_variants(done)
    if not variants:
        raise VarlabError("There is no finished training to make a table of: run the study's command to its end.")
    variants = [variant for variant in variants if variant.kind == variants[0].kind]
    metrics = [m for m in _KEPT.get(variants[0].kind, _METRICS) if any(_by_seed(v, m[0], done) for v in variants)]
    lines = _rows(variants, metrics, done) + _differences(variants, metrics, done)
    missing = [run for run in runs if not run.finished and run.kind == variants[0].kind]
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
    draft = readme.with_name(f".{readme.name}.tmp")
    draft.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")
    draft.replace(readme)


def _rows(variants: Sequence[Variant], metrics: Sequence[tuple[str, str]], runs: Sequence[Run]) -> list[str]:
    titles = ["", "seeds", "images", "FLOPs", "seconds", *(title for _, title in metrics)]
    lines = [f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    for variant in variants:
        cost = [_mean(variant, key) for key in ("images", "flops", "seconds")]
        cells = [
            _interval(interval(list(found.values()))) if (found := _by_seed(variant, key, runs)) else "–"
            for key, _ in metrics
        ]
        lines.append(f"| {' | '.join([variant.label, str(len(variant.runs)), *cost, *cells])} |")
    return lines


def _differences(variants: Sequence[Variant], metrics: Sequence[tuple[str, str]], runs: Sequence[Run]) -> list[str]:
    base, lines = variants[0], list[str]()
    for other in variants[1:]:
        told = [_difference(base, other, key, title, runs) for key, title in metrics]
        found = [text for text in told if text]
        if found:
            seeds = len({run.seed for run in base.runs} & {run.seed for run in other.runs})
            lines.append(f"- **{other.label} less {base.label}**, paired over {seeds} seeds: {'; '.join(found)}.")
    return ["", *lines] if lines else []


def _difference(base: Variant, other: Variant, key: str, title: str, runs: Sequence[Run]) -> str:
    found = paired(_by_seed(base, key, runs), _by_seed(other, key, runs))
    if found is None or found.n < 2:
        return ""
    span = f"[{_signed(found.low)}, {_signed(found.high)}]"
    return f"{title} {_signed(found.mean)} {span}, p {found.p:.2g}" + ("" if found.clear else ", not clear of zero")


def _by_seed(variant: Variant, key: str, runs: Sequence[Run]) -> dict[int, float]:
    found = {run.seed or 0: value(run, main_score(run, runs), key) for run in variant.runs}
    return {seed: number for seed, number in found.items() if number is not None}


def _cell(found: dict[int, float]) -> str:
    return _interval(interval(list(found.values()))) if found else "–"


def _mean(variant: Variant, key: str) -> str:
    totals = [total for run in variant.runs if (total := run.total(key)) is not None]
    return si(sum(totals) / len(totals)) if totals else "–"


def _interval(found: Interval) -> str:
    if math.isnan(found.low):
        return significant(found.mean)
    return f"{significant(found.mean)} [{significant(found.low)}, {significant(found.high)}]"


def _signed(number: float) -> str:
    return f"{'+' if number > 0 else '−' if number < 0 else ''}{significant(abs(number))}"
