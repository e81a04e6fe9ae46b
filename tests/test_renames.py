"""Names of the time before a renaming: in old configurations, in records, in users' YAML."""

from __future__ import annotations

import logging
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from varlab import renames
from varlab.recipe.objects import make
from varlab.renames import MOVED, current_name, current_targets
from varlab.run.changes import differences

TARGETS = (Path(__file__).parent / "old" / "targets.txt").read_text().split()


@pytest.mark.parametrize("name", TARGETS)
def test_every_old_target_is_somewhere_today(name: str) -> None:
    """Whoever moves one of them adds its old name to ``varlab/renames.py``."""
    module, _, attribute = current_name(name).rpartition(".")
    assert callable(getattr(import_module(module), attribute))


@pytest.mark.parametrize("old", MOVED)
def test_only_names_that_are_gone_are_in_the_table(old: str) -> None:
    parent, _, name = old.rpartition(".")
    gone = find_spec(parent) is None or not (hasattr(import_module(parent), name) or _is_module(old))
    assert gone, f"{old} is there: the table would hide it"


def _is_module(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is a module without modules in it
        return False


def test_the_longest_name_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(renames, "MOVED", {"a.b": "x", "a.b.c": "y.z", "a.b.D": "x.E"})
    assert [current_name(name) for name in ("a.b", "a.b.c.F", "a.b.D", "a.b.d.G", "a.bb", "a")] == [
        "x",
        "y.z.F",
        "x.E",
        "x.d.G",
        "a.bb",
        "a",
    ]


def test_targets_at_any_depth() -> None:
    old = {"parts": [{"_target_": "varlab.data.crop.Centre"}], "path": "varlab.data.crop", "count": 3}
    new = {"parts": [{"_target_": "varlab.data.image.crop.Centre"}], "path": "varlab.data.crop", "count": 3}
    assert current_targets(old) == new == current_targets(new)
    assert differences(old, new) == differences(new, old) == []


def test_a_moved_target_is_built_and_named_once(caplog: pytest.LogCaptureFixture) -> None:
    config = {"_target_": "varlab.data.augment.Augment", "flip": False, "crop": 1.0, "noise": 0.0}
    renames._logged_name.cache_clear()
    with caplog.at_level(logging.INFO, "varlab"):
        assert type(make(config)) is type(make(config)) is type(make(current_targets(config)))
    (line,) = (record.message for record in caplog.records if "_target_" in record.message)
    assert config["_target_"] in line and current_name(config["_target_"]) in line
