"""Kinds of training that varlab does not know: shown by what their runs say, hold and logged."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from varlab.report import find_runs, write_report
from varlab.report.page.verdict import verdict
from varlab.report.readme_table import study_table
from varlab.report.run_kind import KINDS, run_kind
from varlab.report.sweep_table import _score
from varlab.report.variants import group_variants

from . import make_runs


def test_what_a_run_validated_is_shown(tmp_path: Path) -> None:
    run = make_runs.regressor(tmp_path / "runs" / "a")
    make_runs.generator(tmp_path / "runs" / "b", order="raster")
    files = write_report([tmp_path / "runs"], tmp_path / "out", title="mine")
    page = files.html.read_text()
    assert "<h2>Regressor trainings</h2>" in page and "Validation error" in page and "<h3>Heat map</h3>" in page
    assert page.index("<h2>Generators</h2>") < page.index("<h2>Regressor trainings</h2>")
    with files.csv.open(newline="") as file:
        rows = {row["kind"]: row for row in csv.DictReader(file)}
    assert float(rows["regressor"]["val/error"]) == 0.325 and rows["generator"]["val/error"] == ""
    (read,) = find_runs([run])
    assert _score(read) == "val/error=0.325" and read.order == ""


def test_the_configuration_names_and_ranks_columns(tmp_path: Path) -> None:
    report = {"title": "Regressors", "columns": {"error": "min"}}
    for seed in (0, 1):
        make_runs.regressor(tmp_path / f"a{seed}", seed=seed, report=report)
    variants = group_variants(find_runs([tmp_path]))
    kind = run_kind([run for variant in variants for run in variant.runs])
    assert len(variants) == 1 and kind.title == "Regressors" and [c.best for c in kind.quality] == ["min"]
    assert "| error |" in study_table(find_runs([tmp_path])).splitlines()[0] and verdict(variants) == ""


@pytest.mark.parametrize(("way", "first"), [("min", "good"), ("max", "bad")])
def test_the_verdict_follows_the_declared_way(tmp_path: Path, way: str, first: str) -> None:
    for name, error in (("good", 0.1), ("bad", 0.5)):
        report = {"columns": {"error": way}}
        make_runs.regressor(tmp_path / name, error=error, report=report, versions={"x": name}, parents={})
    runs = find_runs([tmp_path])
    for run in runs:
        run.config["lr"] = run.path.name
    assert verdict(group_variants(runs)).startswith(f"regressor · lr {first} has the ")


def test_a_kind_that_trains_a_tokenizer_has_its_columns(tmp_path: Path) -> None:
    make_runs.regressor(tmp_path / "a", build={"tokenizer": {}})
    make_runs.score(tmp_path / "a", fid=1.0)
    kind = run_kind(find_runs([tmp_path]))
    assert kind.quality[: len(KINDS["tokenizer"].quality)] == KINDS["tokenizer"].quality and kind.model == "tokenizer"
    assert kind.quality[-1].key == "val/error"
