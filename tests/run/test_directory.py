"""The run directory: who may enter, what is remembered."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from varlab.errors import VarlabError
from varlab.json_file import write_json
from varlab.run.changes import differences
from varlab.run.directory import RunDirectory
from varlab.run.record import RunRecord, read_record

CONFIG = {"seed": 3, "data": {"batch": 8}, "out": None, "trainer": {"threads": 1}}


def prepare(path: Path, config: dict = CONFIG, command: str = "train") -> tuple[RunDirectory, bool]:
    directory = RunDirectory(path)
    try:
        return directory, directory.prepare(
            RunRecord(command=command, config=config, overrides=["seed=3"], name="x", seed=config["seed"])
        )
    finally:
        directory.close()


def test_a_new_run_is_recorded(tmp_path: Path) -> None:
    directory, todo = prepare(tmp_path / "a")
    record = directory.record().to_json()
    assert todo and not directory.resuming
    assert record["config"] == CONFIG and record["seed"] == 3 and record["overrides"] == ["seed=3"]
    assert record["outcome"]["state"] == "running"
    assert record["code"]["version"] and record["versions"]["torch"] and record["hardware"]["cores"] >= 1


def test_finished_runs_have_nothing_to_do(tmp_path: Path) -> None:
    directory, _ = prepare(tmp_path)
    directory.finish({"images": 10})
    before = directory.record_path.read_bytes()
    _, todo = prepare(tmp_path)
    assert not todo
    assert directory.record_path.read_bytes() == before


def test_what_was_made_from_other_weights_is_made_anew(tmp_path: Path) -> None:
    asked = RunRecord(command="evaluate", config={"run": "runs/a"}, source="first")
    other = replace(asked, source="second")
    with RunDirectory(tmp_path) as directory:
        assert directory.prepare(asked)
        directory.finish({"fid": 1.0})
    with RunDirectory(tmp_path) as directory:
        assert not directory.prepare(asked)
        assert directory.prepare(other)
        assert "fid" not in directory.record().outcome.to_json()


def test_unfinished_runs_resume_with_what_they_remember(tmp_path: Path) -> None:
    directory, _ = prepare(tmp_path)
    directory.update(auto={"precision": "bf16"})
    again, todo = prepare(tmp_path)
    assert todo and again.resuming
    assert again.record().auto == {"precision": "bf16"}


def test_failed_runs_resume(tmp_path: Path) -> None:
    directory, _ = prepare(tmp_path)
    (tmp_path / "progress").write_text("24")
    directory.fail("the disk is full")
    outcome = directory.record().outcome.to_json()
    assert (outcome["state"], outcome["error"], outcome["images"]) == ("failed", "the disk is full", 24)
    again, todo = prepare(tmp_path)
    assert todo and again.resuming
    assert again.record().outcome.error is None


def test_a_run_that_failed_before_its_first_update_may_be_corrected(tmp_path: Path) -> None:
    directory, _ = prepare(tmp_path)
    directory.fail("no such data")
    again, todo = prepare(tmp_path, CONFIG | {"seed": 4})
    assert todo and not again.resuming
    assert again.record().seed == 4


@pytest.mark.parametrize("state", ["running", "finished"])
def test_another_configuration_is_refused_by_name(tmp_path: Path, state: str) -> None:
    directory, _ = prepare(tmp_path)
    if state == "finished":
        directory.finish({})
    with pytest.raises(VarlabError, match=r"data\.batch: 8 → 9.*new: \(absent\) → 1"):
        prepare(tmp_path, CONFIG | {"data": {"batch": 9}, "new": 1})


def test_how_and_where_is_not_another_configuration(tmp_path: Path) -> None:
    prepare(tmp_path)
    shrink = {"depth": 1}
    _, todo = prepare(tmp_path, CONFIG | {"out": str(tmp_path), "shrink": shrink})
    assert todo
    assert differences({"a": 1}, {"a": True}) and differences({"a": (1,)}, {"a": [1]}) == []


def test_lists_and_long_values_are_named_as_different() -> None:
    assert differences({"scales": [[1, 1]], "a": None}, {"scales": [[2, 2]]}) == ["scales: [[1, 1]] → [[2, 2]]"]
    (line,) = differences({"a": "x" * 10_000}, {"a": 1})
    assert line.endswith("… → 1") and len(line) < 300


def test_another_command_is_refused(tmp_path: Path) -> None:
    prepare(tmp_path)
    with pytest.raises(VarlabError, match="varlab train"):
        prepare(tmp_path, command="sample")


def test_a_second_process_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = f"""
import sys
from pathlib import Path
from varlab.run.directory import RunDirectory
RunDirectory(Path({str(tmp_path)!r})).lock()
print("locked", flush=True)
sys.stdin.read()
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    monkeypatch.setattr("varlab.run.directory.LOCK_PATIENCE", 0.2)
    with pytest.raises(VarlabError, match=f"process {process.pid} on"):
        prepare(tmp_path)
    process.kill()
    process.wait()
    _, todo = prepare(tmp_path)
    assert todo


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    directory = RunDirectory(tmp_path / "a", rank=1)
    assert directory.prepare(RunRecord(command="train", config=CONFIG))
    directory.update(auto={"x": 1})
    directory.finish({})
    assert not (tmp_path / "a").exists()


def test_the_record_is_whole_or_as_it_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_json(tmp_path / "run.json", {"a": 1})

    def full(fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(VarlabError, match="the disk is full"):
        write_json(tmp_path / "run.json", {"a": 2})
    assert json.loads((tmp_path / "run.json").read_text()) == {"a": 1}


@pytest.mark.parametrize(("text", "says"), [(None, "no run.json"), ("{", "cannot be read"), ("{}", "not the record")])
def test_what_is_no_run_is_said(tmp_path: Path, text: str | None, says: str) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with pytest.raises(VarlabError, match=says):
        read_record(tmp_path)
