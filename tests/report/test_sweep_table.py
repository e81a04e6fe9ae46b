"""The table of a sweep: a row for each job, correct while it runs, after a failure and after a kill."""

from __future__ import annotations

import cProfile
import csv
import json
import pstats
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest

from tests import small
from varlab.cli.main import main
from varlab.errors import VarlabError
from varlab.report import sweep_table, write_report
from varlab.run.directory import RunDirectory
from varlab.tasks import Task

from . import make_runs

SWEEP = ("order=next_scale,raster", "seed=1")


def sweep(out: Path) -> int:
    return main(["train", "-m", f"out={out}", *small.GENERATOR, "budget.images=128", "pictures.every=null", *SWEEP])


def table(out: Path) -> dict[str, dict[str, str]]:
    with (out / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["job"] for row in rows] == [str(i) for i in range(len(rows))]
    return {row["overrides"].split("order=")[1]: row for row in rows}


@pytest.fixture
def unlucky(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Raster with seed 1 fails on its way."""
    plain = Task.training_step

    def fails(task: Task, batch, batch_idx: int) -> object:
        if task.rng.seed == 1 and type(task.order).__name__ != "NextScale" and task.images >= 64:
            raise VarlabError("The lights went out: switch them on.")
        return plain(task, batch, batch_idx)

    monkeypatch.setattr(Task, "training_step", fails)
    return monkeypatch


@pytest.mark.slow
def test_one_of_two_fails_and_only_that_one_runs_again(
    lab: Path, tmp_path: Path, unlucky: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "study"
    assert sweep(out) == 1
    assert "1 of 2 runs failed:" in capsys.readouterr().err
    rows = table(out)
    assert len(rows) == 2
    bad = rows.pop("raster seed=1")
    assert (bad["state"], bad["attempts"], bad["why"]) == ("failed", "1", "The lights went out: switch them on.")
    assert bad["images"] == "64"
    for row in rows.values():
        assert row["state"] == "finished" and row["score"].startswith("val_nll=") and float(row["flops"]) > 0
        assert row["images"] == "128" and len(row["config_hash"]) == 12
    assert len({row["config_hash"] for row in [*rows.values(), bad]}) == 2
    page = write_report([out], tmp_path / "report", title="x").html.read_text()
    assert "2 jobs: 1 finished, 1 failed" in page and "The lights went out" in page
    before = {run: (out / run / "run.json").stat().st_mtime_ns for run in (row["path"] for row in rows.values())}
    unlucky.undo()
    with small.inside(lab.parent):
        assert sweep(out) == 0
    page = write_report([out], tmp_path / "report", title="x").html.read_text()
    assert "(2 jobs)" in page and "<h2>Sweep" not in page
    again = table(out)
    assert {row["state"] for row in again.values()} == {"finished"}
    assert again["raster seed=1"]["attempts"] == "2" and again["raster seed=1"]["why"] == ""
    assert before == {run: (out / run / "run.json").stat().st_mtime_ns for run in before}


def test_before_and_after_a_kill(tmp_path: Path) -> None:
    """A job that never started is pending; one that no process works on is stopped."""
    jobs = [sweep_table.SweepJob((f"seed={i}",), f"seed={i}") for i in range(3)]
    sweep_table.add_jobs(tmp_path, jobs[:2])
    sweep_table.add_jobs(tmp_path, jobs[1:])  # a second sweep into the same folder joins the first
    (tmp_path / "seed=1").mkdir()
    record = {
        "command": "train",
        "config": {"seed": 1},
        "outcome": {"state": "running"},
        "attempts": 3,
        "slurm_job": "7_1",
    }
    (tmp_path / "seed=1" / "run.json").write_text(json.dumps(record))
    sweep_table.update_table(tmp_path)
    rows = sweep_table.read_rows(tmp_path)
    assert [(row.state, row.attempts, row.slurm_job) for row in rows] == [
        ("pending", 0, ""),
        ("stopped", 3, "7_1"),
        ("pending", 0, ""),
    ]
    assert sweep_table.count_states(rows) == "2 pending, 1 stopped"


def test_a_folder_without_a_sweep_has_no_table(tmp_path: Path) -> None:
    sweep_table.update_table(tmp_path)
    assert list(tmp_path.iterdir()) == [] and sweep_table.find_sweeps([tmp_path]) == []


def test_after_a_job_only_its_own_run_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jobs = [sweep_table.SweepJob((f"seed={i}", "x='a, b'"), f"seed={i}") for i in range(300)]
    sweep_table.add_jobs(tmp_path, jobs)
    (tmp_path / "seed=7").mkdir()
    record = {"command": "train", "config": {}, "outcome": {"state": "running"}, "attempts": 1}
    (tmp_path / "seed=7" / "run.json").write_text(json.dumps(record))
    read: list[Path] = []
    plain = sweep_table.read_run
    monkeypatch.setattr(sweep_table, "read_run", lambda path: read.append(path) or plain(path))
    sweep_table.update_row(tmp_path, "seed=7", working=True)
    assert read == [tmp_path / "seed=7"]
    with (tmp_path / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["job"] for row in rows] == [str(i) for i in range(300)]
    assert [row["state"] for row in rows].count("running") == 1 and rows[7]["state"] == "running"
    whole = (tmp_path / "sweep.csv").read_text().replace("running", "stopped")
    sweep_table.update_table(tmp_path)
    assert (tmp_path / "sweep.csv").read_text() == whole, "a row alone is the row of the whole table"


def test_the_work_of_a_row_does_not_grow_with_the_jobs(tmp_path: Path) -> None:
    assert refresh_calls(tmp_path / "few", 10) == refresh_calls(tmp_path / "many", 3000)


def refresh_calls(folder: Path, jobs: int) -> int:
    """Function calls in the refresh of one job's row."""
    make_runs.classifier(folder / "seed=7")
    sweep_table.add_jobs(folder, [sweep_table.SweepJob((f"seed={i}",), f"seed={i}") for i in range(jobs)])
    sweep_table.update_row(folder, "seed=7")  # once for what is made at the first use
    profile = cProfile.Profile()
    profile.runcall(sweep_table.update_row, folder, "seed=7")
    return int(pstats.Stats(profile).total_calls)  # type: ignore[attr-defined]


def test_an_unreadable_job_is_a_row(tmp_path: Path) -> None:
    sweep_table.add_jobs(tmp_path, [sweep_table.SweepJob((f"seed={i}",), f"seed={i}") for i in range(2)])
    (tmp_path / "seed=1").mkdir()
    (tmp_path / "seed=1" / "run.json").write_text('{"build": 5, "outcome": {"state": "finished"}}')
    sweep_table.update_table(tmp_path)
    rows = sweep_table.read_rows(tmp_path)
    assert [row.state for row in rows] == ["pending", "unreadable"] and "build is not a dict" in rows[1].why
    assert sweep_table.count_states(rows) == "1 pending, 1 unreadable"


@pytest.mark.parametrize("text", ["[" * 200_000, "{}", "[5]", '[{"overrides": [], "path": "../x"}]', '[{"path": 5}]'])
def test_a_damaged_list_of_jobs_is_passed_over(tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "sweep.json").write_text(text)
    sweep_table.add_jobs(tmp_path, [sweep_table.SweepJob(("seed=0",), "seed=0")])
    assert [row.path for row in sweep_table.read_rows(tmp_path)] == ["seed=0"]
    assert text == "{}" or "passed over" in caplog.text


def test_a_list_with_a_flipped_bit_is_named_and_taken_from_the_table(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = [sweep_table.SweepJob((f"seed={i}", "x='a, b'"), f"seed={i}", f"7_{i}") for i in range(3)]
    sweep_table.add_jobs(tmp_path, jobs[:2])
    sound = (tmp_path / "sweep.json").read_text()
    (tmp_path / "sweep.json").write_text(sound.replace("seed=1", "seed=3", 1))
    sweep_table.update_table(tmp_path)
    assert [row.path for row in sweep_table.read_rows(tmp_path)] == ["seed=0", "seed=1"]
    assert "sweep.json is damaged, or was edited" in caplog.text
    sweep_table.add_jobs(tmp_path, jobs[1:])
    assert sweep_table.slurm_jobs(tmp_path) == {"seed=0": "7_0", "seed=1": "7_1", "seed=2": "7_2"}
    assert [row.overrides for row in sweep_table.read_rows(tmp_path)] == [f"seed={i} x='a, b'" for i in range(3)]
    earlier = [asdict(sweep_table.SweepJob(("seed=1",), "seed=1", "7_0"))]
    (tmp_path / "sweep.json").write_text(json.dumps(earlier))  # as the first version wrote it
    assert sweep_table.slurm_jobs(tmp_path) == {"seed=1": "7_0"}


@pytest.mark.parametrize(
    "damage",
    [
        lambda table: table.replace(b"5,seed=5", b"5,seed=6"),
        lambda table: b"\xff\xfe",
        lambda table: b"",
        lambda table: table[: len(table) // 2],
        lambda table: None,
    ],
)
def test_a_damaged_table_is_made_again_with_the_next_row(
    tmp_path: Path, damage: Callable[[bytes], bytes | None]
) -> None:
    sweep_table.add_jobs(tmp_path, [sweep_table.SweepJob((f"seed={i}",), f"seed={i}") for i in range(9)])
    make_runs.classifier(tmp_path / "seed=7")
    sweep_table.update_row(tmp_path, "seed=7")
    table = tmp_path / "sweep.csv"
    whole = table.read_bytes()
    table.unlink()
    if (damaged := damage(whole)) is not None:
        table.write_bytes(damaged)
    sweep_table.update_row(tmp_path, "seed=0")  # of another job
    assert table.read_bytes() == whole


def test_a_table_that_is_made_again_does_not_release_the_run_of_this_process(tmp_path: Path) -> None:
    sweep_table.add_jobs(tmp_path, [sweep_table.SweepJob((f"seed={i}",), f"seed={i}") for i in range(2)])
    (tmp_path / ".sweep.csv.sha256").unlink()  # as a table of the first version
    with RunDirectory(tmp_path / "seed=1") as directory:
        directory.lock()
        record = {"command": "train", "config": {}, "outcome": {"state": "running"}}
        (tmp_path / "seed=1" / "run.json").write_text(json.dumps(record))
        sweep_table.update_row(tmp_path, "seed=1", working=True)
        asked = f"from varlab.report.sweep_table import read_rows; print([r.state for r in read_rows(Path({str(tmp_path)!r}))])"
        command = [sys.executable, "-c", f"from pathlib import Path; {asked}"]
        assert "'pending', 'running'" in subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert b"running" in (tmp_path / "sweep.csv").read_bytes()
