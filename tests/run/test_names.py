"""A run's folder name: the same for the same question, safe for shells, never the clock."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from varlab.run.names import LONGEST, overrides_name, run_path

keys = st.from_regex(r"[a-z][a-z_.]{0,12}[a-z]", fullmatch=True)
values = st.text(max_size=40)
simple = st.dictionaries(
    keys.filter(lambda k: k.split(".")[0] not in {"launch", "trainer", "out", "experiment", "name", "hydra"}),
    st.from_regex(r"[A-Za-z0-9.]{1,8}", fullmatch=True),
    max_size=5,
)


@pytest.mark.parametrize(
    ("overrides", "name"),
    [
        ([], "default"),
        (["source=digits"], "source=digits"),
        (["seed=1", "order=raster"], "order=raster+seed=1"),
        (["experiment=digits/tokenizer", "name=x", "out=a", "launch=slurm", "trainer=gpu"], "default"),
        (["trainer.devices=2", "+trainer.x=1", "hydra/launcher=joblib", "hydra.sweep.dir=a"], "default"),
        (["tokenizer_run=auto", "outer=1", "trainers=2"], "outer=1+tokenizer_run=auto+trainers=2"),
        (["run='runs/a/order=raster'"], "run=runs_a_order=raster"),
        (["++a.b=1", "+c=2", "~d"], "a.b=1+c=2+no-d"),
        (["tokenizer.scales=[1, 2,4]"], "tokenizer.scales=1-2-4"),
        (["seed=0", "seed=1"], "seed=1"),
    ],
)
def test_examples(overrides: list[str], name: str) -> None:
    assert overrides_name(overrides) == name


@given(st.lists(st.builds(lambda k, v: f"{k}={v}", keys, values), max_size=20))
def test_safe_and_never_too_long(overrides: list[str]) -> None:
    name = overrides_name(overrides)
    assert re.fullmatch(r"[A-Za-z0-9_.=+-]+", name)
    assert name[0] not in "-.=+"
    assert len(name) <= LONGEST


@given(simple, st.randoms())
def test_the_order_of_words_does_not_matter(asked: dict[str, str], random) -> None:
    overrides = [f"{key}={value}" for key, value in asked.items()]
    shuffled = random.sample(overrides, len(overrides))
    assert overrides_name(overrides) == overrides_name(shuffled)


@given(simple, simple)
def test_other_questions_have_other_names(one: dict[str, str], other: dict[str, str]) -> None:
    names = [overrides_name([f"{key}={value}" for key, value in asked.items()]) for asked in (one, other)]
    assert (names[0] == names[1]) == (one == other)


def test_long_names_stay_apart() -> None:
    long = [f"key{i}=some_long_value" for i in range(20)]
    assert overrides_name(long) != overrides_name([*long, "seed=1"])


def test_out_is_the_directory_or_under_multirun_its_parent() -> None:
    asked = {"name": "gen", "overrides": ["seed=1"]}
    assert run_path(out=None, multirun=False, **asked) == Path("runs/gen/seed=1")
    assert run_path(out=None, multirun=True, **asked) == Path("runs/gen/seed=1")
    assert run_path(out="here", multirun=False, **asked) == Path("here")
    assert run_path(out="here", multirun=True, **asked) == Path("here/seed=1")
