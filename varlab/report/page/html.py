"""The page of a report: the content of its template, and the files that are written."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from varlab.config import Config
from varlab.files import write_text
from varlab.report import sweep_table, tables
from varlab.report.page import verdict
from varlab.report.page.charts import charts
from varlab.report.page.gallery import galleries
from varlab.report.page.scaling import scaling_chapter
from varlab.report.page.style import PALETTE
from varlab.report.page.template import render_template
from varlab.report.run_kind import RunKind
from varlab.report.runs import Run, Score
from varlab.report.stats.scaling_study import find_studies, fit_laws, scaling_csv
from varlab.report.text import duration, si, whole
from varlab.report.variants import Variant, group_variants, kinds_of, science
from varlab.run.record import compare

__all__ = ["ReportFiles", "write"]

_WIDEST_TABLE = 9  # columns; a wider table is split in two
_LONGEST_DIFF = 20_000  # characters
_TOTALS = {"images": whole, "flops": si, "seconds": duration}


@dataclass(frozen=True)
class ReportFiles:
    """The files of a report. scaling: None without a scaling study."""

    html: Path
    csv: Path
    scaling: Path | None = None


def write(runs: Sequence[Run], out: Path, *, title: str, sweeps: Sequence[Path] = ()) -> ReportFiles:
    """Write ``report.html``, ``results.csv`` and, for a scaling study, ``scaling.csv``, each atomically.

    sweeps: folders of sweeps, which the page lists with their current state.
    """
    variants = group_variants(runs)
    by_kind = kinds_of(variants)
    trainings = [run for variant in variants for run in variant.runs]
    scaling = [(study, laws) for study in find_studies(trainings) if (laws := fit_laws(study))]
    files = ReportFiles(out / "report.html", out / "results.csv", out / "scaling.csv" if scaling else None)
    write_text(files.csv, tables.results_csv(trainings, [column for kind, _ in by_kind for column in kind.extra]))
    if files.scaling:
        write_text(files.scaling, scaling_csv({study.label: laws for study, laws in scaling}))
    text = render_template(
        "template.html.j2",
        title=title,
        count=len(runs),
        headline=verdict.headline(variants),
        verdict=verdict.verdict(variants),
        cautions=verdict.cautions(runs, variants),
        chapters=[_chapter(kind, chosen) for kind, chosen in by_kind],
        scaling=[scaling_chapter(study, laws) for study, laws in scaling],
        glossary=_glossary(kind for kind, _ in by_kind),
        protocols=[_protocol(run, score) for run in runs for score in run.scores],
        differences=[table for kind, chosen in by_kind if (table := _differences(kind, chosen))],
        runs=[_run_details(run) for run in runs],
        palette=len(PALETTE),
        sweeps=[_sweep(folder) for folder in sweeps],
    )
    write_text(files.html, text)
    return files


def _sweep(folder: Path) -> Config:
    rows = sweep_table.read_rows(folder)
    unfinished = [row for row in rows if row.state != "finished"]
    return {"folder": folder, "count": len(rows), "states": sweep_table.count_states(rows), "unfinished": unfinished}


def _chapter(kind: RunKind, variants: Sequence[Variant]) -> Config:
    """The tables, pictures and curves of one kind."""
    blocks = _blocks(kind, variants)
    return {
        "kind": kind.name,
        "title": kind.title,
        "blocks": blocks,
        "seeded": any(cell.spread for block in blocks for row in block["rows"] for cell in row.cells),
        "protocols": sorted({run.score.name for variant in variants for run in variant.runs if run.score}),
        "galleries": galleries(variants),
        "charts": charts(kind, variants),
    }


def _blocks(kind: RunKind, variants: Sequence[Variant]) -> list[Config]:
    """Quality and cost: in one table if it fits the page, else in two with the same order of rows."""
    quality, cost = kind.quality, kind.cost
    unranked = set() if verdict.comparable(variants) else {column.key for column in quality}
    if not verdict.share_tokenizer([run for variant in variants for run in variant.runs if run.finished]):
        unranked.add("val_nll")
    columns, rows = tables.score_table(variants, quality + cost, unranked=unranked)
    split = sum(column in quality for column in columns)
    if len(columns) <= _WIDEST_TABLE:
        return [{"columns": columns, "rows": rows, "split": split, "titles": ("Quality", "Cost")}]
    parts = ((slice(0, split), "Quality"), (slice(split, None), "Cost"))
    return [
        {"columns": columns[part], "rows": [tables.ScoreRow(row.variant, row.cells[part]) for row in rows],
         "split": len(columns[part]), "titles": (title, "")}
        for part, title in parts if columns[part]
    ]  # fmt: skip


def _glossary(kinds: Iterable[RunKind]) -> list[tuple[str, str]]:
    """The meaning of each column, for the kinds of run on this page."""
    columns = (column for kind in kinds for column in kind.quality + kind.cost)
    return list(dict.fromkeys((column.label, column.about) for column in columns))


def _protocol(run: Run, score: Score) -> Config:
    """A score file in full, whether or not the tables show it."""
    images = [] if score.images is None else [("scored at images", whole(score.images))]
    return {
        "run": run,
        "name": score.name,
        "lines": verdict.describe_protocol(score),
        "values": [(key, _plain(value)) for key, value in score.values.items()] + images,
    }


def _differences(kind: RunKind, variants: Sequence[Variant]) -> Config | None:
    rows = compare(*(science(variant.first.config) for variant in variants))
    if not rows:
        return None
    cells = [(key, map(_plain, row)) for key, row in rows.items()]
    return {"title": kind.title, "variants": variants, "rows": cells}


def _run_details(run: Run) -> Config:
    record, code = run.record, run.record.code
    changed = "with uncommitted changes" if code.get("diff") else ""
    version = [str(code.get("version") or ""), str(code.get("commit") or "")[:12], changed]
    parents = {name: parent.to_json() for name, parent in record.parents.items()}
    facts = {
        "command": shlex.join(["varlab", record.command, *record.overrides]),
        "code": " ".join(filter(None, version)),
        "versions": _one_line(record.versions),
        "hardware": _one_line(record.hardware),
        "data": _one_line(record.data or {}),
        "parents": "; ".join(f"{name}: {_one_line(parent | {'config': None})}" for name, parent in parents.items()),
        "settings resolved": _one_line(record.auto),
        "cost": _one_line(record.cost),
        "resumed, repeating": ", ".join(f"{r.get('repeated')} images at {r.get('from')}" for r in record.resumes),
        "error": run.error,
    }
    totals = {key: run.total(key) for key in _TOTALS}
    return {
        "run": run,
        "totals": {key: "" if total is None else _TOTALS[key](total) for key, total in totals.items()},
        "facts": [(key, fact) for key, fact in facts.items() if fact],
        "diff": str(code.get("diff") or "")[:_LONGEST_DIFF],
        "config": json.dumps(run.config, indent=2, default=str) if run.config else "",
    }


def _one_line(content: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {_plain(value)}" for key, value in content.items() if value not in (None, "", [], {}))


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)
