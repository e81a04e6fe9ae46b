"""Reading run directories: every run once, and damaged ones too."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from varlab.errors import VarlabError
from varlab.report import find_runs, read_run
from varlab.report.runs import Run
from varlab.run.record import RunRecord, parse_record

from . import make_runs


def test_folders_are_searched_and_each_run_is_read_once(study: Path) -> None:
    one = study / "order=raster+seed=0"
    runs = find_runs([one, study, one])
    assert runs[0].path == one
    assert len(runs) == len({run.path for run in runs}) == len(list(study.rglob("run.json")))


def test_scores_of_a_shorter_length_are_named_and_left_out(tmp_path: Path) -> None:
    run = make_runs.generator(tmp_path / "run", order="raster", images=60_000)
    make_runs.score(run, fid=9.0, cfg=2.0, images=30_000)
    read = read_run(run)
    assert [score.images for score in read.scores] == [60_000]
    assert len(read.faults) == 1 and "was measured at 30000 of 60000 images: evaluate the run again" in read.faults[0]


def test_folders_come_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    names = [
        "cfg=0.25",
        "cfg=0.5",
        "cfg=1.5",
        "cfg=12",
        "vocab_size=32+seed=0",
        "vocab_size=128+seed=0",
        "vocab_size=128+seed=1",
    ]
    for name in names[::-1]:
        make_runs.classifier(tmp_path / name)
    assert [run.path.name for run in find_runs([tmp_path])] == names


def test_a_runs_own_folders_and_earlier_reports_are_no_runs(tmp_path: Path) -> None:
    make_runs.write_run(tmp_path, {"command": "report"}, [])
    run = make_runs.classifier(tmp_path / "a")
    make_runs.write_run(run / "tb", {"command": "train"}, [])
    assert [other.path for other in find_runs([tmp_path])] == [run]


@pytest.mark.parametrize("name", ["empty", "missing"])
def test_no_run_is_one_sentence(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(VarlabError, match=name) as caught:
        find_runs([tmp_path / name])
    assert "\n" not in str(caught.value)


def test_a_report_of_nothing_is_one_sentence() -> None:
    with pytest.raises(VarlabError, match="No run was given"):
        find_runs([])


def test_a_damaged_run_is_unreadable_with_the_reason(tmp_path: Path) -> None:
    run = make_runs.generator(tmp_path / "a", order="raster")
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"images": 60001, "train/lo')
    (run / "scores" / "half.json").write_text('{"kind": "gen')
    damaged = read_run(run)
    assert len(damaged.metrics) == 60
    assert [score.name for score in damaged.scores] == ["classifier-3f2a_n1797_cfg1.0_seed0"]
    for text in ('{"command": "tr', '{"command": "train"}', '{"overrides": 3, "outcome": {"state": "running"}}', "[1]"):
        (run / "run.json").write_text(text)
        assert read_run(run).state == "unreadable"
        assert "run.json" in read_run(run).error


@given(st.lists(st.one_of(st.floats(), st.none(), st.text(max_size=3), st.booleans()), max_size=20))
def test_series_hold_the_finite_numbers_in_order(values: list[object]) -> None:
    run = Run(path=Path("x"), record=RunRecord(), metrics=[{"images": i, "m": value} for i, value in enumerate(values)])
    x, y = run.series("m", "images")
    expected = [(i, v) for i, v in enumerate(values) if isinstance(v, float) and math.isfinite(v)]
    assert list(zip(x, y, strict=True)) == expected
    assert run.last("m") == (expected[-1][1] if expected else None)


def test_scales_come_coarse_to_fine() -> None:
    run = Run(
        path=Path("x"),
        record=RunRecord(),
        metrics=[{f"val/usage/{k}": float(k) for k in (10, 2, 0)} | {"val/usage/x": 9.0}],
    )
    assert run.per_scale("val/usage") == [0.0, 2.0, 10.0]


@pytest.mark.parametrize(
    ("record", "order"),
    [
        ({"choices": {"order": "spiral_in"}, "overrides": ["order=raster"]}, "spiral_in"),
        ({"choices": {"/order@task.order": "spiral_in"}}, "spiral_in"),
        ({"overrides": ["seed=1", "order=raster"]}, "raster"),
        ({"config": {"order": {"name": "mine", "_target_": "a.B"}}}, "mine"),
        ({"config": {"order": {"_target_": "my.module.NextScale"}}}, "next_scale"),
    ],
)
def test_an_order_has_a_name_however_it_was_given(record: dict[str, object], order: str) -> None:
    build, outcome = {"transformer": {"depth": 1}}, {"state": "running"}
    run = Run(path=Path("x"), record=parse_record({"command": "train", "build": build, "outcome": outcome, **record}))
    assert (run.kind, run.order) == ("generator", order)


def test_totals_fall_back_to_the_last_log_point(tmp_path: Path) -> None:
    run = make_runs.generator(tmp_path / "a", order="raster")
    record = json.loads((run / "run.json").read_text())
    record["outcome"] = {"state": "running"}
    (run / "run.json").write_text(json.dumps(record))
    assert read_run(run).total("images") == 60_000
    assert read_run(run).total("tokenizer_flops") is None
