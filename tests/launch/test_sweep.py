"""Sweeps: two of the same at once, and places that cannot be written."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from varlab.cli.main import main
from varlab.run.record import read_record


def start_twice(workplace: Path, *words: str, code: int = 0) -> list[str]:
    """The same sweep of two slow jobs in two processes at once: what each said, after both ended with the same code."""
    sweeps = [start(workplace, *words) for _ in range(2)]
    said = [sweep.communicate(timeout=100)[1] for sweep in sweeps]
    assert [sweep.returncode for sweep in sweeps] == [code, code], said
    return said


def start(workplace: Path, *words: str) -> subprocess.Popen[str]:
    config = ("--config-dir", str(workplace.parent / "conf"))
    arguments = ["fake", "-m", "seed=0,1", "action=slow", "out=both", *words, *config]
    code = f"from tests.fake import COMMANDS; from varlab.cli.main import main; raise SystemExit(main({arguments!r}, COMMANDS))"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE, text=True)


def test_the_same_sweep_twice_at_once(workplace: Path) -> None:
    """One works on a job, the other says so and waits; both end with 0, as all jobs do, and each job ran once."""
    assert "waiting for its end" in "".join(start_twice(workplace))
    assert_each_job_ran_once()


def assert_each_job_ran_once() -> None:
    records = [read_record(file.parent) for file in sorted(Path("both").glob("*/run.json"))]
    assert [record.auto["runs"] for record in records] == [1, 1]
    with Path("both/sweep.csv").open() as file:
        assert [row["state"] for row in csv.DictReader(file)] == ["finished", "finished"]


@pytest.mark.parametrize("actions", ["never", "work,never"])
def test_a_sweep_with_jobs_that_cannot_begin_is_refused_at_once(varlab, workplace: Path, actions: str) -> None:
    code, _, err = varlab("fake", "-m", f"action={actions}", "seed=0,1", "out=many")
    assert code == 1 and "2 of" in err and "runs cannot begin, so none was started" in err
    assert err.count("this never begins: do something else") == 1
    assert not list(workplace.iterdir())


def test_a_job_may_need_the_run_of_another_kind(varlab, workplace: Path) -> None:
    assert varlab("fake", "-m", "+kind=first,second", "out=many")[0] == 0
    code, _, err = varlab("fake", "-m", "+kind=second", "seed=0,1", "out=others")
    assert code == 1 and "2 of 2 runs cannot begin" in err and not Path("others").exists()


def test_a_finished_job_is_not_checked_again(varlab, workplace: Path) -> None:
    assert varlab("fake", "-m", "+kind=first,second", "out=many")[0] == 0
    for folder in Path("many").glob("*kind=first*"):
        shutil.rmtree(folder)
    assert varlab("fake", "-m", "+kind=second", "out=many")[0] == 0


def test_a_study_without_its_data_names_once_how_to_pack_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["train", "-m", "experiment=digits/generator", "order=next_scale,raster", "seed=0,1"]) == 1
    err = capsys.readouterr().err
    assert "4 of 4 runs cannot begin, so none was started, all for one reason" in err
    assert err.count("varlab pack source=digits") == 1 and err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("out", ["out='it is $HOME, (a) \\'b\\''", "out=one,two"])
def test_a_sweep_writes_only_into_its_own_folder(varlab, workplace: Path, out: str) -> None:
    assert varlab("fake", "-m", "seed=0,1", out)[0] == 0
    folders = {"it is $HOME, (a) 'b'", "one", "two"}
    assert {path.name for path in workplace.iterdir()} <= folders and not Path("runs").exists()
    assert len(list(workplace.glob("*/seed=*"))) == 2 * len(list(workplace.iterdir()))


@pytest.mark.parametrize("name", ["sweep.json", "sweep.csv"])
def test_a_sweep_into_a_full_folder_is_one_sentence(
    varlab, workplace: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    full(monkeypatch, name)
    code, _, err = varlab("fake", "-m", "seed=0,1", "out=full")
    assert code == 1 and "disk is full: make room" in err and "Traceback" not in err
    assert not list(Path("full").glob(".*.tmp"))


def test_a_sweep_into_a_folder_that_is_a_file_is_one_sentence(varlab, workplace: Path) -> None:
    Path("taken").write_text("")
    code, _, err = varlab("fake", "-m", "seed=0,1", "out=taken")
    assert code == 1 and "Could not write" in err and "Traceback" not in err


def full(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The disk is full as soon as a file of this name is synced."""
    fsync = os.fsync

    def refuse(file: int) -> None:
        if f".{name}." in str(Path(f"/proc/self/fd/{file}").readlink()):
            raise OSError(28, "No space left on device")
        fsync(file)

    monkeypatch.setattr(os, "fsync", refuse)
