"""Numbers: the columns of results.csv, means and spreads over seeds, what may be ranked."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from varlab.report import find_runs, run_kind, tables, write_report
from varlab.report.page.html import ReportFiles
from varlab.report.text import duration, percent, si, significant, whole
from varlab.report.variants import group_variants

from . import make_runs

ASKED_FOR = [
    "name", "order", "seed", "images", "flops", "tokenizer_flops", "seconds", "val_nll", "fid", "inception_score",
    "precision", "recall", "accuracy", "sampling_flops", "sampling_seconds", "fid_ratio", "fid_draws", "fid_val",
    "nn_ratio", "rfid", "psnr", "state", "run", "protocol",
]  # fmt: skip


def rows_of(path: Path) -> dict[str, dict[str, str]]:
    with path.open(newline="") as file:
        return {Path(row["run"]).name: row for row in csv.DictReader(file)}


def table_of(folder: Path, **kwargs: object) -> tuple[list[run_kind.Column], list[tables.ScoreRow]]:
    runs = find_runs([folder])
    generators = [variant for variant in group_variants(runs) if variant.kind == "generator"]
    return tables.score_table(generators, run_kind.QUALITY + run_kind.COST, **kwargs)  # type: ignore[arg-type]


def cell(table: tuple[list[run_kind.Column], list[tables.ScoreRow]], label: str, key: str) -> tables.Cell:
    columns, rows = table
    place = [column.key for column in columns].index(key)
    return next(row.cells[place] for row in rows if row.variant.label == label)


def test_csv_has_the_columns_and_a_row_for_every_training(report: ReportFiles, study: Path) -> None:
    rows = rows_of(report.csv)
    assert set(ASKED_FOR) <= set(next(iter(rows.values())))
    assert set(rows) == {path.parent.name for path in study.rglob("run.json")} - {"data"}


def test_csv_holds_the_files_numbers_to_the_last_digit(report: ReportFiles, study: Path) -> None:
    row = rows_of(report.csv)["order=raster+seed=1"]
    score = json.loads(next((study / "order=raster+seed=1" / "scores").iterdir()).read_text())
    outcome = json.loads((study / "order=raster+seed=1" / "run.json").read_text())["outcome"]
    expected = score["scores"] | score["cost"] | outcome
    for key in set(ASKED_FOR) - {"name", "order", "seed", "rfid", "psnr", "state", "run", "protocol"}:
        assert float(row[key]) == expected[key]
    assert (row["order"], row["seed"], row["state"], row["rfid"]) == ("raster", "1", "finished", "")


def test_csv_is_blank_where_a_number_does_not_apply(report: ReportFiles) -> None:
    rows = rows_of(report.csv)
    assert rows["tokenizer=multi"]["psnr"] == "23.9" and rows["tokenizer=multi"]["fid"] == ""
    assert rows["judge"]["order"] == rows["judge"]["protocol"] == "" != rows["judge"]["accuracy"]
    failed = rows["order=random+seed=2"]
    assert failed["state"] == "failed" and failed["fid"] == failed["accuracy"] == "" and failed["val_nll"] != ""


def test_mean_and_sample_deviation_over_seeds(tmp_path: Path) -> None:
    fids = [10.0, 13.0, 11.5]
    for seed, fid in enumerate(fids):
        make_runs.generator(tmp_path / str(seed), order="raster", seed=seed, fid=fid)
    shown = cell(table_of(tmp_path), "raster", "fid")
    assert shown == tables.Cell(text="11.5", spread="1.50")


@given(st.lists(st.floats(-1e6, 1e6), max_size=6))
def test_mean_and_spread_are_the_textbooks(numbers: list[float]) -> None:
    mean, spread = tables.mean_and_spread(numbers)
    assert (mean is None) == (not numbers) and (spread is None) == (len(numbers) < 2)
    if mean is not None:
        assert mean == pytest.approx(sum(numbers) / len(numbers))
    if spread is not None:
        assert spread == pytest.approx(math.sqrt(statistics.variance(numbers)))


def test_the_best_is_marked_and_the_table_is_ordered_by_it(study: Path) -> None:
    table = table_of(study)
    assert [row.variant.label for row in table[1]][:3] == ["next_scale", "raster", "random"]
    assert [row.variant.finished for row in table[1]] == [True] * 3 + [False] * 2
    assert cell(table, "next_scale", "fid").best and cell(table, "next_scale", "recall").best
    assert not any(cell(table, label, "fid").best for label in ("raster", "random"))
    assert not any(row.cells[2].best for row in table[1]), "equal inception scores: nobody is best"


def test_an_unfinished_run_is_never_best(study: Path) -> None:
    table = table_of(study)
    nlls = {row.variant.label: cell(table, row.variant.label, "val_nll") for row in table[1]}
    assert nlls["random"].best and nlls["random · seed 1"].text and not nlls["random · seed 1"].best


def test_columns_that_cannot_be_compared_have_no_best(study: Path) -> None:
    table = table_of(study, unranked={"fid", "val_nll"})
    assert not any(cell(table, row.variant.label, key).best for row in table[1] for key in ("fid", "val_nll"))
    assert cell(table, "next_scale", "recall").best


def test_nll_is_not_ranked_across_tokenizers(page: str) -> None:
    # next_scale uses another tokenizer than raster and random: 83.7 is the lowest, and must not be in bold
    assert re.search(r'<td class="best ?">\s*10\.5', page)
    assert not re.search(r'<td class="best ?">\s*83\.7', page)
    assert "different tokenizers" in page


def test_a_run_is_shown_under_the_protocol_that_most_share_else_the_newest(tmp_path: Path) -> None:
    paths = [make_runs.generator(tmp_path / name, order="raster", seed=i) for i, name in enumerate("ab")]
    make_runs.score(paths[0], fid=3.0, cfg=2.0)
    runs = find_runs([tmp_path])
    assert {run.score.name for run in runs if run.score} == {"classifier-3f2a_n1797_cfg1.0_seed0"}
    os.utime(paths[0] / "scores" / "classifier-3f2a_n1797_cfg2.0_seed0.json", (4e9, 4e9))
    (alone,) = find_runs([paths[0]])
    assert alone.score is not None and alone.score.get("fid") == 3.0
    text = write_report([tmp_path], tmp_path, title="t").html.read_text()
    assert "classifier-3f2a_n1797_cfg2.0_seed0" in text and "not in the tables above" in text


def test_costs_are_shown_per_sample(tmp_path: Path) -> None:
    (run,) = find_runs([make_runs.generator(tmp_path / "a", order="raster", n=100, cfg=2.0)])
    assert run.value("flops_per_sample") == pytest.approx(2.4e7)
    assert run.value("seconds_per_sample") == pytest.approx(0.063)


@pytest.mark.parametrize(
    ("show", "number", "text"),
    [
        (significant, 12.34, "12.3"), (significant, 1234.5, "1,234"), (significant, 0.0512, "0.051"),
        (significant, -3.14159, "-3.14"), (significant, 2e-5, "2.00e-05"), (percent, 0.9734, "97.3%"),
        (whole, 60000, "60,000"), (si, 3.214e12, "3.21 T"), (si, 999, "999"), (si, 0, "0"), (duration, 94, "1 min 34 s"),
        (duration, 0.0024, "2.4 ms"), (duration, 120, "2 min"), (duration, 3 * 3600 + 60, "3 h 1 min"),
        (duration, 76 * 3600, "3 d 4 h"), (duration, 59.7, "59.7 s"),
    ],
)  # fmt: skip
def test_numbers_as_people_read_them(show: object, number: float, text: str) -> None:
    assert show(number) == text  # type: ignore[operator]
