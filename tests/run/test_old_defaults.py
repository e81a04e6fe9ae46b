"""A run that began under earlier defaults resumes under the same command."""

from __future__ import annotations

import pytest

from varlab.run.changes import with_old_defaults
from varlab.run.record import RunRecord

BEGAN = {"data": {"augment": {"flip": True, "crop": 1.125}, "batch": 256}}
NOW = {"data": {"augment": {"flip": False, "crop": 1.0}, "batch": 64}}


def record(config: dict[str, object], *overrides: str, data: str = "folder") -> RunRecord:
    return RunRecord(command="train", config=config, overrides=list(overrides), choices={"data": data})


def test_defaults_that_have_changed_are_those_that_the_run_began_with() -> None:
    assert with_old_defaults(record(NOW), record(BEGAN)) == BEGAN
    assert NOW["data"]["batch"] == 64


def test_named_keys_are_as_they_are_typed() -> None:
    made = with_old_defaults(record(NOW, "data.augment.flip=false", "data.batch=64"), record(BEGAN))
    assert made == {"data": {"augment": {"flip": False, "crop": 1.125}, "batch": 64}}


@pytest.mark.parametrize("recorded", [record(NOW), record(BEGAN, data="shards"), record({"data": {"path": "x"}})])
def test_a_run_that_did_not_begin_so_changes_nothing(recorded: RunRecord) -> None:
    assert with_old_defaults(record(NOW), recorded) == NOW
