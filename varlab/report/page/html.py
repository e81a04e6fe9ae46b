"""The page: what the template is given, and the two files it ends in."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from varlab.config import Config
from varlab.files import write_text
from varlab.report import ledger, tables
from varlab.report.compare import Variant, differences, group_variants
from varlab.report.page import pictures, scaling_section, style, verdict
from varlab.report.page.charts import charts
from varlab.report.read import Run, Score
from varlab.report.stats.scaling_study import Law, Study, laws, scaling_csv, studies
from varlab.report.units import duration, si, whole
from varlab.run.record import ABSENT

__all__ = ["ReportResult", "stylesheet", "write"]

_HERE = Path(__file__).parent
_WIDEST_TABLE = 9  # columns; more are split in two tables
_KINDS = {"generator": "Generators", "tokenizer": "Tokenizers", "classifier": "Classifiers"}


@dataclass(frozen=True)
class ReportResult:
    """Where the report was written."""

    html: Path
    csv: Path
    scaling: Path | None = None  # where a scaling study is among the runs


def write(runs: Sequence[Run], out: Path, *, title: str, ledgers: Sequence[Path] = ()) -> ReportResult:
    """Write ``report.html``, ``results.csv`` and, where sizes were studied, ``scaling.csv``; each whole or not at all.

    ledgers: folders of sweeps, shown as they stand.
    """
    variants = group_variants(runs)
    scores = {run.path: tables.main_score(run, runs) for run in runs}
    trainings = [run for variant in variants for run in variant.runs]
    out.mkdir(parents=True, exist_ok=True)
    scaling = [(study, found) for study in studies(trainings) if (found := laws(study))]
    result = ReportResult(out / "report.html", out / "results.csv", out / "scaling.csv" if scaling else None)
    write_text(result.csv, tables.results_csv(trainings, scores))
    if result.scaling:
        write_text(result.scaling, scaling_csv({study.label: found for study, found in scaling}))
    sweeps = [_sweep(folder) for folder in ledgers]
    write_text(result.html, render(runs, variants, scores, scaling, title=title, sweeps=sweeps))
    return result


def render(
    runs: Sequence[Run],
    variants: Sequence[Variant],
    scores: dict[Path, Score | None],
    scaling: Sequence[tuple[Study, Sequence[Law]]],
    *,
    title: str,
    sweeps: Sequence[Mapping[str, Any]] = (),
) -> str:
    """The page as text."""
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("template.html.j2").render(
        title=title,
        css=Markup(stylesheet()),
        count=len(runs),
        headline=verdict.headline(variants),
        verdict=verdict.verdict(variants, scores),
        cautions=verdict.cautions(runs, variants, scores),
        chapters=[_chapter(kind, variants, scores) for kind in _KINDS if any(v.kind == kind for v in variants)],
        scaling=[scaling_section.chapter(study, found) for study, found in scaling],
        glossary=_glossary(variants),
        protocols=_protocols(runs, scores),
        differences=[table for kind in _KINDS if (table := _differences(kind, variants))],
        runs=[_run_details(run) for run in runs],
        palette=len(style.PALETTE),
        sweeps=sweeps,
    )


def _sweep(folder: Path) -> Config:
    """What the page says of a sweep: how things stand, and the jobs that are not done."""
    found = ledger.entries(folder)
    open_jobs = [entry for entry in found if entry.state != "finished"]
    return {"folder": str(folder), "count": len(found), "states": ledger.summary(found), "open": open_jobs}


def stylesheet() -> str:
    """The style of every page."""
    light, dark = ("".join(f"--c{i}:{pair[tone]};" for i, pair in enumerate(style.PALETTE)) for tone in (0, 1))
    text = (_HERE / "style.css").read_text(encoding="utf-8")
    return f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}{text}"


def _chapter(kind: str, variants: Sequence[Variant], scores: dict[Path, Score | None]) -> Config:
    """All about the generators, the tokenizers or the classifiers: table, pictures, curves."""
    chosen = [variant for variant in variants if variant.kind == kind]
    shown = [score for variant in chosen for run in variant.runs if (score := scores.get(run.path))]
    blocks = _blocks(kind, chosen, shown, scores)
    return {
        "kind": kind,
        "title": _KINDS[kind],
        "variants": chosen,
        "blocks": blocks,
        "seeded": any(cell.spread for block in blocks for row in block["rows"] for cell in row.cells),
        "protocols": sorted({score.name for score in shown}),
        "galleries": pictures.galleries(chosen),
        "charts": charts(kind, chosen, scores),
    }


def _blocks(
    kind: str, variants: Sequence[Variant], shown: Sequence[Score], scores: dict[Path, Score | None]
) -> list[Config]:
    """Quality and cost, beside each other where both fit the page, else one below the other, rows in equal order."""
    quality, cost = tables.COLUMNS[kind]
    unranked = {column.key for column in quality} if not verdict.comparable(shown) else set()
    if not verdict.share_tokenizer([run for variant in variants for run in variant.runs if run.finished]):
        unranked.add("val_nll")
    columns, rows = tables.score_table(variants, quality + cost, scores, unranked=unranked)
    split = sum(column in quality for column in columns)
    if len(columns) <= _WIDEST_TABLE:
        return [{"columns": columns, "rows": rows, "split": split, "titles": ("Quality", "Cost")}]
    parts = ((slice(0, split), "Quality"), (slice(split, None), "Cost"))
    return [
        {"columns": columns[part], "rows": [tables.Row(row.variant, row.cells[part]) for row in rows],
         "split": len(columns[part]), "titles": (title, "")}
        for part, title in parts if columns[part]
    ]  # fmt: skip


def _glossary(variants: Sequence[Variant]) -> list[tuple[str, str]]:
    """What the tables' columns mean, for the kinds of run on this page."""
    kinds = [kind for kind in _KINDS if any(variant.kind == kind for variant in variants)]
    columns = [column for kind in kinds for group in tables.COLUMNS[kind] for column in group]
    return list({f"{column.label}: {column.about}": (column.label, column.about) for column in columns}.values())


def _protocols(runs: Sequence[Run], scores: dict[Path, Score | None]) -> list[Config]:
    """Every score file of every run, spelled out: what the tables show, and what they don't."""
    return [
        {
            "run": run.path.as_posix(),
            "name": score.name,
            "main": score is scores.get(run.path),
            "images": "" if score.images is None else whole(score.images),
            "lines": verdict.describe_protocol(score),
            "values": [(key, _plain(value)) for key, value in score.values.items()],
        }
        for run in runs
        for score in run.scores
    ]


def _differences(kind: str, variants: Sequence[Variant]) -> Config | None:
    chosen = [variant for variant in variants if variant.kind == kind]
    rows = differences({variant.label: variant.face.config for variant in chosen})
    if len(chosen) < 2 or not rows:
        return None
    cells = [(key, [_plain(row[variant.label]) for variant in chosen]) for key, row in rows.items()]
    return {"title": _KINDS[kind], "variants": chosen, "rows": cells}


def _run_details(run: Run) -> Config:
    code, parents = run.part("code"), run.part("parents")
    resumes = run.record.get("resumes") or []
    repeated = [f"{resume.get('repeated')} images at {resume.get('from')}" for resume in resumes]
    totals = {"images": whole, "flops": si, "seconds": duration}
    facts = {
        "command": shlex.join(["varlab", run.command, *run.overrides]),
        "code": " ".join(filter(None, [str(code.get("version") or ""), str(code.get("commit") or "")[:12],
                                       "with uncommitted changes" if code.get("diff") else ""])),
        "versions": _one_line(run.part("versions")),
        "hardware": _one_line(run.part("hardware")),
        "data": _one_line(run.part("data")),
        "parents": "; ".join(f"{key}: {_one_line(_short(parent))}" for key, parent in parents.items()),
        "settings resolved": _one_line(run.part("auto")),
        "cost": _one_line(run.part("cost")),
        "resumed, repeating": ", ".join(repeated),
        "error": run.error,
    }  # fmt: skip
    return {
        "path": run.path.as_posix(),
        "kind": run.kind,
        "state": run.state,
        "seed": ABSENT if run.seed is None else run.seed,
        "totals": {key: "" if (total := run.total(key)) is None else show(total) for key, show in totals.items()},
        "facts": [(key, fact) for key, fact in facts.items() if fact],
        "diff": str(code.get("diff") or "")[:20_000],
        "config": json.dumps(run.config, indent=2, default=str) if run.config else "",
    }


def _short(parent: Any) -> Mapping[str, Any]:
    if not isinstance(parent, Mapping):
        return {"is": parent}
    return {key: value for key, value in parent.items() if key != "config"}


def _one_line(content: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {_plain(value)}" for key, value in content.items() if value not in (None, "", [], {}))


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)
