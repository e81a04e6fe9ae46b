"""Of keys of which one is to be given, the nearest to the user counts: command line, own files, packaged files."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from tests import small
from varlab.cli.alternatives import read_alternatives
from varlab.cli.app import conf_dir
from varlab.cli.command_table import COMMANDS
from varlab.cli.main import main

BUDGET = ("images", "flops", "seconds")
Compose = Callable[..., "tuple[int, dict, str]"]


@pytest.fixture
def composed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Compose:
    """``composed("train", "seed=1", experiment={…})`` → (exit code, configuration, error), with a user's file mine.yaml."""

    def call(command: str, *words: str, experiment: dict | None = None) -> tuple[int, dict, str]:
        folder = tmp_path / "conf" / "experiment"
        folder.mkdir(parents=True, exist_ok=True)
        mine = OmegaConf.to_yaml(experiment or {"seed": 0})
        (folder / "mine.yaml").write_text(f"# @package _global_\n{mine}")
        code = main([command, "--config-dir", str(tmp_path / "conf"), *words, "--cfg", "job"])
        captured = capsys.readouterr()
        return code, OmegaConf.to_container(OmegaConf.create(captured.out)), captured.err

    return call


def on_digits(**keys: object) -> dict:
    """A user's experiment over a packaged one, whose budget is one of FLOPs."""
    return {"defaults": ["digits/generator", "_self_"], **keys}


@pytest.mark.parametrize("name", BUDGET)
def test_the_command_lines_budget_replaces_the_experiments(name: str, composed: Compose) -> None:
    code, config, _ = composed("train", "experiment=digits/generator", f"budget.{name}=6000")
    assert code == 0 and config["budget"] == {key: 6000 if key == name else None for key in BUDGET}


def test_seed_data_and_choices_of_the_command_line_win(composed: Compose) -> None:
    experiment = {"defaults": ["digits/judge", "_self_"], "seed": 3, "data": {"batch": 7}, "val": {"every": 9}}
    words = ("experiment=mine", "seed=5", "data=photos", "data.batch=8")
    _, config, _ = composed("train", *words, experiment=experiment)
    assert (config["seed"], config["data"]["batch"], config["val"]["every"]) == (5, 8, 9)
    assert config["data"]["path"] == "runs/data/source=photos"


def test_a_users_experiment_wins_over_the_packaged_one(composed: Compose) -> None:
    mine = on_digits(budget={"images": 128})
    _, config, _ = composed("train", "experiment=mine", experiment=mine)
    assert config["budget"] == {"images": 128, "flops": None, "seconds": None}
    _, config, _ = composed("train", "experiment=mine", "budget.seconds=3", experiment=mine)
    assert config["budget"] == {"images": None, "flops": None, "seconds": 3}


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=8)
@given(packaged=st.booleans(), own=st.sampled_from([None, *BUDGET]), typed=st.sampled_from([None, *BUDGET]))
def test_the_nearest_counts(packaged: bool, own: str | None, typed: str | None, composed: Compose) -> None:
    experiment = {**(on_digits() if packaged else {}), **({"budget": {own: 2}} if own else {"seed": 1})}
    words = ["experiment=mine", *([f"budget.{typed}=3"] if typed else [])]
    _, config, _ = composed("train", *words, experiment=experiment)
    expected = {typed: 3} if typed else {own: 2} if own else {"flops": 6e12} if packaged else {}
    assert {key: value for key, value in config["budget"].items() if value is not None} == expected


GROUPS = [
    (command, group) for command in COMMANDS for group in read_alternatives(conf_dir() / "alternatives.yaml", command)
]
VALUES = {"transformer": "tiny_d2", "tokenizer": "multi"}
NEEDED = {"edit": ("run=x", "image=x"), "import": ("format=vqgan",), "train": ()}


@pytest.mark.parametrize(
    ("command", "group"), GROUPS, ids=lambda part: "-".join(part) if isinstance(part, list) else part
)
def test_two_on_a_command_line_are_refused_and_the_remedy_works(
    command: str, group: list[str], composed: Compose
) -> None:
    task = ("task=tokenizer",) if "tokenizer" in group else ()
    for pair in itertools.combinations(group, 2):
        words = {key: f"{key}={VALUES.get(key, 'true')}" for key in pair}
        code, _, said = composed(command, *NEEDED[command], *task, *words.values())
        assert code == 1 and f"leave out {pair[0]} or {pair[1]}." in said
        for word in words.values():
            code, _, said = composed(command, *NEEDED[command], *task, word)
            assert code == 0, said


def test_two_in_one_file_are_refused_by_its_name(composed: Compose) -> None:
    code, _, said = composed("train", "experiment=mine", experiment=on_digits(budget={"images": 1, "seconds": 1}))
    assert code == 1 and "experiment/mine.yaml gives budget.images and budget.seconds" in said


@pytest.mark.slow
def test_a_swept_budget(lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rest = [word for word in small.GENERATOR if not word.startswith(("task", "budget"))]
    still = (
        "pictures.every=null",
        "scores.every=null",
        "val.every=null",
        "experiment=digits/generator",
        "order=raster",
    )
    assert main(["train", "-m", *still, *rest, "budget.images=32,64", f"out={tmp_path / 'sweep'}"]) == 0
    runs = sorted((tmp_path / "sweep").glob("*/run.json"))
    assert sorted(small.record(run.parent)["outcome"]["images"] for run in runs) == [32, 64]
    assert all("flops" not in run.parent.name for run in runs)
    assert main(["train", "-m", *still, "budget.images=32,64", "budget.flops=1e9", f"out={tmp_path / 'two'}"]) == 1
    assert "leave out budget.images or budget.flops" in capsys.readouterr().err and not (tmp_path / "two").exists()


@pytest.mark.parametrize("content", [b"a: [1\n", b"a: \xff\n", b"a\x00: 1\n", b"a: 1\nb\n", b"[" * 3000])
def test_a_users_file_that_is_no_yaml_is_named(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "conf" / "order").mkdir(parents=True)
    (tmp_path / "conf" / "order" / "mine.yaml").write_bytes(content)
    words = ["train", "--config-dir", str(tmp_path / "conf"), "order=mine", "--cfg", "job"]
    assert main(words) == 1
    said = capsys.readouterr().err
    assert "mine.yaml" in said and "cannot be read (" in said and "unexpected" not in said


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("pictures=null", "pictures=null: pictures holds settings of its own. Set one of them: pictures.every=…"),
        ("scores=none", "Set one of them: scores.every=…"),
        ("budget=5", "budget.images=…"),
        ("data=null", "data is chosen by name. Choose from digits"),
        ("trainer=5", "trainer=5: trainer is chosen by name. Choose from cpu"),
        ("condition=null", "did you mean 'none'?"),
    ],
)
def test_a_value_in_place_of_settings_is_refused(word: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Null, a number or a word, where a key holds settings or is a group of configurations."""
    assert main(["train", "experiment=digits/judge", word, "dry=true"]) == 1
    assert said in capsys.readouterr().err
