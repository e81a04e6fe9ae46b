"""The search of ``auto``: neighbours that cannot be read are named, and passed over."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from varlab.errors import VarlabError
from varlab.recipe import run_search
from varlab.recipe.run_search import nearest_run, same_images
from varlab.run.record import RunRecord, read_record
from varlab.types import DataInfo

FINISHED = {"command": "train", "outcome": {"state": "finished"}, "build": {"tokenizer": {}}, "data": {"hash": "1"}}
BROKEN = {
    "deep": b"[" * 200_000,
    "overrides": b'{"overrides": 5, "outcome": {"state": "finished"}}',
    "encoding": b"\xff\xfe",
    "number": b'{"outcome": {"state": "finished"}, "seed": ' + b"9" * 5000 + b"}",
}


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for name in ("sound", *BROKEN, "pipe"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "runs" / "sound" / "run.json").write_text(json.dumps(FINISHED))
    for name, content in BROKEN.items():
        (tmp_path / "runs" / name / "run.json").write_bytes(content)
    os.mkfifo(tmp_path / "runs" / "pipe" / "run.json")
    return tmp_path / "runs"


def test_broken_neighbours_are_named_and_passed_over(runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert nearest_run(runs / "new", lambda record: True, "none") == Path("runs/sound")
    with pytest.raises(VarlabError, match="none"):
        nearest_run(runs / "new", lambda record: False, "none")
    for name in (*BROKEN, "pipe"):
        assert f"unreadable: {runs / name / 'run.json'}" in caplog.text


def test_a_neighbour_that_vanishes_meanwhile_is_passed_over(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def vanishing(run: Path) -> RunRecord:
        for name in (*BROKEN, "pipe"):
            shutil.rmtree(runs / name, ignore_errors=True)
        return read_record(run)

    monkeypatch.setattr(run_search, "read_record", vanishing)
    assert nearest_run(runs / "new", lambda record: True, "none") == Path("runs/sound")


def test_far_below_the_folder_of_a_run_nothing_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run may lie in a home directory. Under runs/ all is searched."""
    (tmp_path / "work" / "runs").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "work")
    places = [tmp_path / "home" / "a" / "b" / "c", tmp_path / "home" / "a" / "b" / "c" / "d"]
    places += [tmp_path / "work" / "runs" / "1" / "2" / "3" / "4" / "5"]
    for place in places:
        place.mkdir(parents=True, exist_ok=True)
        (place / "run.json").write_text(json.dumps(FINISHED))
    found = {path.resolve() for path, _ in run_search.finished_trainings(tmp_path / "home" / "new")}
    assert found == {places[0], places[2]}


@pytest.mark.parametrize("data", [5, [1], "x", None])
def test_a_configuration_of_another_type_is_no_match(data: object) -> None:
    info = DataInfo(path="x", source="x", hash="1", classes=("a",), image_size=(8, 8), counts={})
    record = RunRecord(config={"data": data}, data={"hash": "2"})
    assert not same_images(record, info)
