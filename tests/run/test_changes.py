"""What may change when a run resumes: one table sorts the keys, and moved data are compared by their hash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from varlab.errors import VarlabError
from varlab.files import sha256
from varlab.run.changes import check_resumable, compare_runs
from varlab.run.directory import RunDirectory
from varlab.run.neighbour import neighbour_hint
from varlab.run.record import Outcome, Parent, RunRecord, read_record, write_record

CONFIG: dict[str, Any] = {
    "out": None,
    "data": {"path": "here", "workers": 2, "batch": 8, "tokens": None},
    "trainer": {"devices": 1, "precision": "auto", "micro_batch": None},
    "tokenizer_run": "auto",
    "log": {"every": 64},
    "checkpoint": {"every": 64},
    "budget": {"images": 640},
}


def changed(**parts: Any) -> dict[str, Any]:
    """CONFIG with other values, by top-level key."""
    return CONFIG | {key: CONFIG[key] | value if isinstance(value, dict) else value for key, value in parts.items()}


@pytest.mark.parametrize(
    ("kind", "parts"),
    [
        ("free", {"data": {"workers": 0}}),
        ("free", {"log": {"every": 1}}),
        ("free", {"checkpoint": {"every": 64, "minutes": 5}}),
        ("rounded", {"trainer": {"devices": 4}}),
        ("rounded", {"trainer": {"micro_batch": 2}}),
        ("moved", {"data": {"path": "there"}}),
        ("moved", {"tokenizer_run": "runs/other"}),
        ("length", {"budget": {"images": 1280}}),
        ("different", {"trainer": {"precision": "bf16-mixed"}}),
        ("different", {"data": {"batch": 16}}),
        ("different", {"new": 1}),
    ],
)
def test_each_key_has_a_meaning_for_the_weights(kind: str, parts: dict[str, Any]) -> None:
    changes = compare_runs(CONFIG, changed(**parts))
    assert list(getattr(changes, kind)) == list(changes.all) != []
    assert ("equal" in changes.to_json()) == (kind == "rounded")


def test_places_of_outputs_are_no_change() -> None:
    assert compare_runs(CONFIG, CONFIG | {"out": "runs/x", "logger": {"csv": 1}}).to_json() == {}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A stopped training on data and with a tokenizer that both have a hash."""
    for name, hashed in (("here", "a" * 64), ("moved", "a" * 64), ("other", "b" * 64)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "index.json").write_text(json.dumps({"version": 1, "sha256": hashed}))
        (tmp_path / name / "weights.safetensors").write_text(hashed)
    record = RunRecord(command="train", config=changed(data={"path": str(tmp_path / "here")}))
    record.data = {"hash": "a" * 64, "tokens": None}
    record.parents = {"tokenizer": Parent(run="x", weights_sha256=sha256(tmp_path / "here/weights.safetensors"))}
    record.outcome = Outcome("stopped")
    path = tmp_path / "runs" / "first"
    path.mkdir(parents=True)
    write_record(path, record)
    (path / "progress").write_text("96")
    return path


def asked(run: Path, command: str = "train", **parts: Any) -> RunRecord:
    config = read_record(run).config
    values = {key: config[key] | value if isinstance(value, dict) else value for key, value in parts.items()}
    return RunRecord(command=command, config=config | values)


def test_moved_data_and_parents_are_compared_by_their_hash(run: Path) -> None:
    places, record = run.parents[1], read_record(run)
    for key, parts in (
        ("data.path", lambda place: {"data": {"path": str(places / place)}}),
        ("tokenizer_run", lambda place: {"tokenizer_run": str(places / place)}),
    ):
        assert list(check_resumable(run, record, asked(run, **parts("moved"))).moved) == [key]
        with pytest.raises(VarlabError, match=f"another configuration: {key}"):
            check_resumable(run, record, asked(run, **parts("other")))
    with pytest.raises(VarlabError, match="tokenizer_run"):
        check_resumable(run, record, asked(run, tokenizer_run="nowhere"))
    check_resumable(run, record, asked(run, data={"path": "s3://elsewhere"}))  # the training compares it


@pytest.mark.parametrize("finished", [False, True])
def test_a_longer_training_is_for_the_schedule_to_allow(run: Path, finished: bool) -> None:
    record = read_record(run)
    record.outcome = Outcome("finished" if finished else "stopped")
    write_record(run, record)
    longer = asked(run, budget={"images": 1280})
    with RunDirectory(run) as directory:
        with pytest.raises(VarlabError, match=r"another length \(budget\.images: 640 → 1280\)"):
            directory.prepare(longer)
        assert directory.prepare(longer, lambda path, recorded, wanted: None) and directory.resuming


def test_other_commands_resume_with_other_workers_only(run: Path) -> None:
    record = read_record(run)
    record.command = "encode"
    check_resumable(run, record, asked(run, "encode", data={"workers": 0}))
    with pytest.raises(VarlabError, match=r"trainer\.devices: 1 → 2"):
        check_resumable(run, record, asked(run, "encode", trainer={"devices": 2}))


def test_the_hint_names_the_run_to_continue(run: Path) -> None:
    new = run.parent / "second"
    hint = neighbour_hint(new, asked(run, data={"workers": 4}))
    assert (
        hint == f"{run} holds the same run (data.workers: 2 → 4), ended after 96 images: add out={run} to continue it"
    )
    assert neighbour_hint(new, asked(run, data={"workers": 4, "batch": 4})) == ""
    (run / "progress").unlink()
    assert neighbour_hint(new, asked(run, data={"workers": 4})) == "", "nothing was trained there"


def test_a_run_that_was_killed_before_it_recorded_its_data_may_take_them_from_elsewhere(run: Path) -> None:
    record = read_record(run)
    record.data, record.parents = None, {}
    assert "data.path" in check_resumable(run, record, asked(run, data={"path": str(run.parents[1] / "moved")})).moved
