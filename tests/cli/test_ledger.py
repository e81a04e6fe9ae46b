"""The ledger of a sweep: every job a line, right while it runs, after it failed, and after it was killed."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from tests import small
from varlab.cli.main import main
from varlab.report import ledger, write_report
from varlab.tasks import Task
from varlab.types import VarlabError

SWEEP = ("order=next_scale,raster", "seed=0,1,2")


def sweep(out: Path) -> int:
    return main(["train", "-m", f"out={out}", *small.GENERATOR, "pictures.every=null", *SWEEP])


def table(out: Path) -> dict[str, dict[str, str]]:
    with (out / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["job"] for row in rows] == [str(i) for i in range(len(rows))]
    return {row["overrides"].split("order=")[1]: row for row in rows}


@pytest.fixture
def unlucky(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Raster with seed 1 fails on its way."""
    plain = Task.training_step

    def fails(task: Task, batch, batch_idx: int) -> None:
        if task.rng.seed == 1 and type(task.order).__name__ != "NextScale" and task.images >= 96:
            raise VarlabError("The lights went out: switch them on.")
        plain(task, batch, batch_idx)

    monkeypatch.setattr(Task, "training_step", fails)
    return monkeypatch


def test_one_of_six_fails_and_only_that_one_runs_again(
    lab: Path, tmp_path: Path, unlucky: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    assert sweep(out) == 1
    assert "1 of 6 runs failed:" in capsys.readouterr().err
    rows = table(out)
    assert len(rows) == 6
    bad = rows.pop("raster seed=1")
    assert (bad["state"], bad["attempts"], bad["why"]) == ("failed", "1", "The lights went out: switch them on.")
    assert bad["images"] == "96"
    for row in rows.values():
        assert row["state"] == "finished" and row["score"].startswith("val_nll=") and float(row["flops"]) > 0
        assert row["images"] == "256" and len(row["config_hash"]) == 12
    assert len({row["config_hash"] for row in [*rows.values(), bad]}) == 6
    page = write_report([out], tmp_path / "report", title="x").html.read_text()
    assert "6 jobs: 5 finished, 1 failed" in page and "The lights went out" in page
    before = {run: (out / run / "run.json").stat().st_mtime_ns for run in (row["path"] for row in rows.values())}
    unlucky.undo()
    with small.inside(lab.parent):
        assert sweep(out) == 0
    again = table(out)
    assert {row["state"] for row in again.values()} == {"finished"}
    assert again["raster seed=1"]["attempts"] == "2" and again["raster seed=1"]["why"] == ""
    assert before == {run: (out / run / "run.json").stat().st_mtime_ns for run in before}


def test_before_and_after_a_kill(tmp_path: Path) -> None:
    """What no process says of itself: pending before, stopped after."""
    jobs = [ledger.Job((f"seed={i}",), f"seed={i}") for i in range(3)]
    ledger.begin(tmp_path, jobs[:2])
    ledger.begin(tmp_path, jobs[1:])  # a second sweep into the same folder joins the first
    (tmp_path / "seed=1").mkdir()
    record = {
        "command": "train",
        "config": {"seed": 1},
        "outcome": {"state": "running"},
        "attempts": 3,
        "slurm_job": "7_1",
    }
    (tmp_path / "seed=1" / "run.json").write_text(json.dumps(record))
    ledger.refresh(tmp_path)
    found = ledger.entries(tmp_path)
    told = [(e.state, e.attempts, e.slurm_job) for e in found]
    assert told == [
        ("pending", 0, ""),
        ("stopped", 3, "7_1"),
        ("pending", 0, ""),
    ]
    assert ledger.summary(found) == "2 pending, 1 stopped"


def test_a_folder_without_a_sweep_has_no_ledger(tmp_path: Path) -> None:
    ledger.refresh(tmp_path)
    assert list(tmp_path.iterdir()) == [] and ledger.find_ledgers([tmp_path]) == []
