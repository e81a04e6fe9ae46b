"""A small part of ``make fuzz``, the same days each time; and that the fuzz sees what it looks for."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.fuzz.commands import Answer, Fault, call, import_commands
from tests.fuzz.days import Day, Step, draw_day
from tests.fuzz.judges import broken_files, judge_answer, judge_set
from tests.fuzz.table import play
from tests.fuzz.worlds import World, WorldPlan, make_folder

PLAN = WorldPlan(
    "folder", "photos", ("cat", "dog"), "classes", 6, ("transparent", "16 bits"), ("links", "other endings")
)

DAYS = {
    "a folder": Day(PLAN, (Step("pack", {"size": 16, "workers": 0}, Fault("full", 9)), Step("report"))),
    "shards": Day(
        replace(PLAN, kind="shards", place="my photos (1)", oddities=("joined tars", "hard links")),
        (Step("pack", {"size": None, "workers": 0}), Step("pack again"), Step("encode", {}, Fault("kill", 3))),
    ),
    "a stop": Day(
        replace(PLAN, oddities=()),
        (
            Step("pack", {"size": None, "workers": 0}, Fault("kill", 7)),
            Step("train", {"task": "classifier", "change": "workers"}, Fault("kill", 12)),
            Step("again"),
        ),
    ),
    "tables": Day(
        replace(PLAN, kind="parquet", oddities=("float labels",)), (Step("pack", {"size": 64, "workers": 0}),)
    ),
}


@pytest.mark.parametrize("name", DAYS)
def test_a_day_has_no_fault(name: str) -> None:
    result = play(DAYS[name])
    assert not result.found, "\n".join([*result.commands, *result.found])
    assert result.done.total() == len(DAYS[name].steps)


def test_a_number_is_a_day() -> None:
    days = [draw_day(number, 3) for number in (1, 2, 1)]
    assert days[0] == days[2] != days[1]
    assert draw_day(1, 4) != days[0]


# -- what the judges must see ----------------------------------------------------------------------------------------------


def _packed(folder: Path) -> tuple[World, str]:
    """A world, its shards in ``data``, and what was said."""
    import_commands()
    world = make_folder(replace(PLAN, oddities=()), folder / "photos")
    words = [
        "pack",
        "source=folder",
        "path=photos",
        "source.size=16",
        "source.val_fraction=0.25",
        "out=data",
        "workers=0",
    ]
    return world, call(words, folder=folder).said


def test_samples_that_are_lost_mixed_up_or_of_nobody_are_seen(tmp_path: Path) -> None:
    world, said = _packed(tmp_path)
    judged = list(judge_set(world, tmp_path / "data", said, size=16))
    assert not judged
    first, *others = world.members
    for members, text in (
        (others, "nobody put there"),
        ([*world.members, replace(first, stem="p9999")], "is no sample"),
        ([replace(first, label="dog"), *others], "has the class 'cat'"),
        ([replace(first, picture=world.members[5].picture), *others], "differs by"),
        ([replace(first, fate="named"), *others], "became a sample"),
    ):
        world.members = members
        assert text in " ".join(judge_set(world, tmp_path / "data", said, size=16))


def test_half_a_file_is_seen(tmp_path: Path) -> None:
    np.savez(tmp_path / "samples.npz", np.arange(9))
    (tmp_path / "run.json").write_text(json.dumps({"a": 1}))
    assert not list(broken_files(tmp_path))
    for name in ("samples.npz", "run.json"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:-5])
        assert name in " ".join(broken_files(tmp_path))


@pytest.mark.parametrize(
    ("code", "said", "found"),
    [
        (1, "varlab train: There is no folder X: pack one.", ""),
        (1, "There was an error", "no sentence"),
        (1, "Traceback (most recent call last)\nvarlab train: unexpected KeyError: 'x'", "traceback"),
        (None, "", "hangs"),
    ],
)
def test_a_command_ends_well_or_by_one_sentence(code: int | None, said: str, found: str) -> None:
    judged = list(judge_answer(Answer(("train",), code, said, False, 0, 1.0), 0))
    assert (found in " ".join(judged)) if found else not judged
