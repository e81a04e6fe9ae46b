"""Attempts of a Slurm job, without a Slurm: who decides what happens next, and by what."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from varlab.errors import VarlabError
from varlab.launch import slurm_attempt
from varlab.launch.slurm_attempt import STOPPED, Attempt, main


@pytest.fixture
def attempt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Attempt:
    monkeypatch.setenv("VARLAB_MAX_TIMEOUTS", "2")
    monkeypatch.setenv("VARLAB_MAX_ATTEMPTS", "3")
    return number(tmp_path, 0)


def number(folder: Path, restarts: int) -> Attempt:
    (folder / str(restarts)).mkdir()
    return Attempt(folder / str(restarts))


def test_outside_of_slurm_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VARLAB_ATTEMPT", raising=False)
    assert Attempt.current() is None


def test_the_first_rank_with_an_error_of_its_own_is_the_cause(attempt: Attempt) -> None:
    attempt.note_error(0, "Connection closed by peer", consequence=True)
    attempt.note_error(3, "the lights went out", consequence=False)
    attempt.note_error(1, "so it is dark", consequence=False)
    attempt.note_end(1)
    assert attempt.refusal() == "rank 3 failed: the lights went out"


def test_killed_goes_on_until_max_attempts(attempt: Attempt) -> None:
    attempt.note_end(137)
    assert attempt.refusal() is None
    second, third = (number(attempt.folder.parent, i) for i in (1, 2))
    second.note_error(0, "Connection closed by peer", consequence=True)
    second.note_end(1)
    assert second.refusal() is None
    third.note_end(137)
    assert "launch.max_attempts allows no more" in str(third.refusal())


@pytest.mark.parametrize(("name", "limited"), [("SIGUSR2", True), ("SIGTERM", False)])
def test_only_time_limits_are_counted(name: str, limited: bool, attempt: Attempt) -> None:
    for restarts in range(3):
        now = attempt if restarts == 0 else number(attempt.folder.parent, restarts)
        now.note_stop(f"Stopped by {name} after 96 images.")
        now.note_end(STOPPED)
    assert ("launch.max_timeouts allows no more" in str(now.refusal())) == limited
    assert [ended["how"] for ended in now.history()["ended"]] == ["time limit" if limited else "stopped"] * 3


def test_killed_for_memory_is_not_tried_again(attempt: Attempt) -> None:
    attempt.note_end(253)
    assert "launch.memory_gb" in str(attempt.refusal())


def test_other_ranks_hear_of_the_beginning(attempt: Attempt) -> None:
    attempt.note_start(Path("run"), todo=True, resuming=False)
    assert attempt.wait_for_start() == {"path": str(Path("run").absolute()), "todo": True, "resuming": False}


def test_other_ranks_do_not_wait_for_one_that_failed(attempt: Attempt) -> None:
    attempt.note_error(0, "another run lives here", consequence=False)
    with pytest.raises(VarlabError, match="rank 0 could not begin"):
        attempt.wait_for_start()


@pytest.mark.parametrize("note", ["start", "0.error", "stopped", "ended"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("true", "null").replace("dark", "bark"),
        lambda text: "[" + text,
        lambda text: '{"why": 5}',
    ],
)
def test_a_damaged_note_is_named_and_ends_the_job(
    attempt: Attempt,
    note: str,
    damage: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The job's own exit code stays, and it does not run again."""
    earlier = number(attempt.folder.parent, 1)
    attempt.note_start(Path("dark"), todo=True, resuming=False)
    attempt.note_stop("dark")
    earlier.note_stop("dark")
    earlier.note_end(STOPPED)
    if note == "0.error":
        attempt.note_error(0, "dark", consequence=False)
    file = (earlier if note == "ended" else attempt).folder / f"{note}.json"
    file.write_text(damage(file.read_text()))
    monkeypatch.setenv("VARLAB_ATTEMPT", str(attempt.folder))
    monkeypatch.setattr(slurm_attempt, "_is_running", lambda job, restarts: True)
    monkeypatch.setattr(slurm_attempt.subprocess, "run", lambda *_, **__: pytest.fail("it was requeued"))
    assert main(STOPPED) == STOPPED
    said = capsys.readouterr().err
    assert str(file) in said and "Traceback" not in said


def test_a_note_of_the_first_version_is_read(attempt: Attempt) -> None:
    (attempt.folder / "start.json").write_text('{"path": "/run", "todo": true, "resuming": false}')
    (attempt.folder / "1.error.json").write_text('{"rank": 1, "time": 5.5, "error": "dark", "consequence": false}')
    assert attempt.path() == Path("/run") and [error["error"] for error in attempt.errors()] == ["dark"]


def test_of_an_array_only_the_job_itself_is_requeued(
    attempt: Attempt, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last job's own number is that of the whole array, by which Slurm would requeue all of it."""
    tool, calls = tmp_path / "bin" / "scontrol", tmp_path / "calls"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\necho "$*" >> {calls}\necho "JobId=12 JobState=RUNNING Requeue=1 Restarts=0"\n')
    tool.chmod(0o755)
    slurm = {
        "SLURM_JOB_ID": "12",
        "SLURM_ARRAY_JOB_ID": "12",
        "SLURM_ARRAY_TASK_ID": "5",
        "VARLAB_ATTEMPT": str(attempt.folder),
    }
    for name, value in {**slurm, "PATH": f"{tool.parent}:{os.environ['PATH']}"}.items():
        monkeypatch.setenv(name, value)
    assert main(137) == 137
    assert calls.read_text().splitlines() == ["--oneliner show job 12_5", "requeue 12_5"]
