"""The page of a report: the content of its template, and the files that are written."""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote

from varlab.config import Config
from varlab.files import require_written, write_text
from varlab.report import sweep_table, tables
from varlab.report.page import verdict
from varlab.report.page.charts import charts
from varlab.report.page.gallery import galleries
from varlab.report.page.palette import PALETTE
from varlab.report.page.scaling import scaling_chapter
from varlab.report.page.template import render_template
from varlab.report.run_kind import RunKind
from varlab.report.runs import Run
from varlab.report.score_files import Score
from varlab.report.stats.scaling_study import find_studies, fit_laws, scaling_csv
from varlab.report.stats.space_differences import (
    SpaceDifference,
    agreement_of_ranks,
    sentences,
    space_differences,
    spaces_of,
)
from varlab.report.text import duration, si, signed, significant, whole
from varlab.report.variants import Variant, group_variants, kinds_of
from varlab.run.config_keys import compare_flat

__all__ = ["ReportFiles", "write"]

_WIDEST_TABLE = 9  # columns; a wider table is split in two
_LONGEST_DIFF = 20_000  # characters
_MOST_DETAILED = 100  # runs with their configuration on the page, and protocols; more runs are linked
_MOST_ROWS = 200  # variants of a table, unreadable files, unfinished jobs
_MOST_LISTED = 2000  # runs in the list of all
_MOST_DRAWN = 24  # variants in figures and pictures: as many as have a colour and dashes of their own
_PICTURE_BYTES = 2_000_000
_TOTALS = {"images": whole, "flops": si, "seconds": duration}


@dataclass(frozen=True)
class ReportFiles:
    """The files of a report. scaling: None without a scaling study. best: the finished generator that ranks first, if any."""

    html: Path
    csv: Path
    scaling: Path | None = None
    best: Run | None = None


def write(runs: Sequence[Run], out: Path, *, title: str, sweeps: Sequence[Path] = ()) -> ReportFiles:
    """Write ``report.html``, ``results.csv`` and, for a scaling study, ``scaling.csv``, each atomically.

    sweeps: folders of sweeps, which the page lists with their current state.
    """
    failed = [run for run in runs if run.is_compared and run.state == "failed"]
    shown = [run for run in runs if not run.is_compared or run.state != "failed"]
    variants = group_variants(shown)
    by_kind = [(kind, _ranked(kind, chosen)) for kind, chosen in kinds_of(variants)]
    trainings = [run for variant in group_variants(runs) for run in variant.runs]
    scaling = [(study, laws) for study in find_studies(trainings) if (laws := fit_laws(study))]
    files = ReportFiles(
        out / "report.html", out / "results.csv", out / "scaling.csv" if scaling else None, _best_generator(by_kind)
    )
    write_text(files.csv, tables.results_csv(trainings, [column for kind, _ in by_kind for column in kind.extra]))
    if files.scaling:
        write_text(files.scaling, scaling_csv({study.label: laws for study, laws in scaling}))
    chapters, faults = _chapters(by_kind)
    many = len(runs) > _MOST_DETAILED
    text = render_template(
        "template.html.j2",
        title=title,
        count=len(runs),
        headline=verdict.headline(variants),
        verdict=verdict.verdict(variants),
        cautions=verdict.cautions(shown, variants),
        failed=failed,
        chapters=chapters,
        scaling=[scaling_chapter(study, laws) for study, laws in scaling],
        protocols=[_protocol(run, score) for run, score in _described_scores(runs)],
        differences=[table for kind, chosen in by_kind if (table := _differences(kind, chosen[:_MOST_DRAWN]))],
        runs=[
            _run_row(run, out if many else None)
            for run in sorted(runs, key=lambda r: many and r.finished)[:_MOST_LISTED]
        ],
        states=Counter(run.state for run in runs),
        details=[] if many else [_run_details(run) for run in runs],
        unreadable=_unreadable(runs) + faults,
        most=_MOST_ROWS,
        drawn=_MOST_DRAWN,
        palette=len(PALETTE),
        sweeps=[_sweep(folder, runs) for folder in sweeps],
    )
    write_text(files.html, text)
    require_written(files.html, files.csv, *([files.scaling] if files.scaling else []))
    return files


def _ranked(kind: RunKind, variants: list[Variant]) -> list[Variant]:
    """The variants as they come; those of a crowd by their rank, so that figures show the best, with colours in that order."""
    if len(variants) <= _MOST_DRAWN:
        return variants
    return [replace(variant, colour=colour) for colour, variant in enumerate(tables.ranked(variants, kind.quality))]


def _best_generator(by_kind: Sequence[tuple[RunKind, list[Variant]]]) -> Run | None:
    ranked = [variant for kind, variants in by_kind for variant in tables.ranked(variants, kind.quality)]
    ranked = [variant for variant in ranked if variant.first.order]
    return ranked[0].first if ranked and ranked[0].finished else None


def _unreadable(runs: Sequence[Run]) -> list[tuple[str, str]]:
    """(run, reason) of each run, and each file of a run, that cannot be read."""
    reasons = [(run, reason) for run in runs for reason in (*run.faults, *([run.error] * (run.state == "unreadable")))]
    return [(run.path.as_posix(), reason) for run, reason in reasons]


def _described_scores(runs: Sequence[Run]) -> list[tuple[Run, Score]]:
    """All scores, or of many the first under each protocol."""
    scores = [(run, score) for run in runs for score in run.scores]
    if len(scores) > _MOST_DETAILED:
        scores = list({score.name: (run, score) for run, score in reversed(scores)}.values())[::-1]
    return scores[:_MOST_DETAILED]


def _sweep(folder: Path, runs: Sequence[Run]) -> Config:
    rows = sweep_table.read_rows(folder, {run.path: run for run in runs})
    unfinished = [row for row in rows if row.state != "finished"]
    return {"folder": folder, "count": len(rows), "states": sweep_table.count_states(rows), "unfinished": unfinished}


def _chapters(by_kind: Sequence[tuple[RunKind, list[Variant]]]) -> tuple[list[Config], list[tuple[str, str]]]:
    """The chapter of each kind, and (picture, reason) of each picture that cannot be read."""
    chapters: list[Config] = []
    faults: list[tuple[str, str]] = []
    room = _PICTURE_BYTES
    for kind, variants in by_kind:
        album = galleries(variants[:_MOST_DRAWN], room)
        room, faults = max(room - album.bytes, 0), faults + album.faults
        chapters.append(_chapter(kind, variants) | {"galleries": album.galleries})
    return chapters, faults


def _chapter(kind: RunKind, variants: Sequence[Variant]) -> Config:
    """The tables and curves of one kind."""
    blocks = _blocks(kind, variants)
    return {
        "kind": kind.name,
        "title": kind.title,
        "count": len(variants),
        "blocks": blocks,
        "seeded": any(cell.spread for block in blocks for row in block["rows"] for cell in row.cells),
        "spaces": _spaces(variants[:_MOST_DRAWN]),
        "protocols": sorted({run.score.name for variant in variants for run in variant.runs if run.score}),
        "glossary": list(dict.fromkeys((c.label, c.about) for block in blocks for c in block["columns"])),
        "charts": charts(kind, variants[:_MOST_DRAWN]),
    }


def _spaces(variants: Sequence[Variant]) -> Config | None:
    """FID in each feature space, where finished variants are scored in several; and what differs there."""
    scored = [variant for variant in variants if variant.finished and variant.values("fid")]
    spaces = spaces_of(scored)
    if len(scored) < 2 or not spaces or not verdict.comparable(scored):
        return None
    differences = space_differences(scored, spaces)
    rows = [(variant, [_space_cell(variant, key, differences.get((variant.label, name))) for name, key in spaces.items()])
            for variant in scored]  # fmt: skip
    lines = [*sentences(scored, spaces, differences), agreement_of_ranks(scored, spaces)]
    return {"names": list(spaces), "rows": rows, "lines": filter(None, lines)}


def _space_cell(variant: Variant, key: str, difference: SpaceDifference | None) -> tables.Cell:
    mean, _ = tables.mean_and_spread(variant.values(key))
    text = "" if mean is None else significant(mean)
    if difference is None:
        return tables.Cell(text)
    interval = f"{signed(difference.mean)} [{signed(difference.low)}, {signed(difference.high)}]"
    return tables.Cell(text, interval, best=difference.stands_out)


def _blocks(kind: RunKind, variants: Sequence[Variant]) -> list[Config]:
    """Quality and cost: in one table if it fits the page, else in two with the same order of rows."""
    quality, cost = kind.quality, kind.cost
    unranked = set() if verdict.comparable(variants) else {column.key for column in quality}
    if not verdict.share_tokenizer([run for variant in variants for run in variant.runs if run.finished]):
        unranked.add("val_nll")
    columns, rows = tables.score_table(variants, quality + cost, unranked=unranked, most=_MOST_ROWS)
    split = sum(column in quality for column in columns)
    if len(columns) <= _WIDEST_TABLE:
        return [{"columns": columns, "rows": rows, "split": split, "titles": ("Quality", "Cost")}]
    parts = ((slice(0, split), "Quality"), (slice(split, None), "Cost"))
    return [
        {"columns": columns[part], "rows": [tables.ScoreRow(row.variant, row.cells[part]) for row in rows],
         "split": len(columns[part]), "titles": (title, "")}
        for part, title in parts if columns[part]
    ]  # fmt: skip


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
    variants = [variant for variant in variants if not variant.first.is_scored_set]
    rows = compare_flat(*(variant.first.science for variant in variants)) if variants else {}
    if not rows:
        return None
    cells = [(key, map(_plain, row)) for key, row in rows.items()]
    return {"title": kind.title, "variants": variants, "rows": cells}


def _run_row(run: Run, out: Path | None) -> Config:
    """A line of the list of runs. out: where the page lies; given, the run is linked from there."""
    totals = {key: run.total(key) for key in _TOTALS}
    shown = {key: "" if total is None else _TOTALS[key](total) for key, total in totals.items()}
    # With "./" in front, no name of a folder is read as a scheme.
    link = out and f"./{quote(os.path.relpath(run.path, out))}/run.json"
    return {"run": run, "totals": shown, "link": link}


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
        "resumed, repeating": "; ".join(map(_resume, record.resumes)),
        "error": run.error,
    }
    return {
        "run": run,
        "facts": [(key, fact) for key, fact in facts.items() if fact],
        "diff": str(code.get("diff") or "")[:_LONGEST_DIFF],
        "config": json.dumps(run.config, indent=2, default=str) if run.config else "",
    }


def _resume(resumed: Config) -> str:
    """Where a run was resumed, and with which changed keys."""
    changed = f" with other {', '.join(resumed['changed'])}" if isinstance(resumed.get("changed"), dict) else ""
    equal = f", equal {resumed['equal']}" if "equal" in resumed else ""
    return f"{resumed.get('repeated')} images at {resumed.get('from')}{changed}{equal}"


def _one_line(content: Mapping[str, object]) -> str:
    return ", ".join(f"{key} {_plain(value)}" for key, value in content.items() if value not in (None, "", [], {}))


def _plain(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)
