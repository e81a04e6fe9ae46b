"""``varlab COMMAND --help``: every command answers, and its keys carry the comments of ``conf/``."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from varlab.cli.command_table import COMMANDS
from varlab.cli.main import main
from varlab.cli.yaml_comments import description, read_comments
from varlab.config import conf_dir


@pytest.fixture
def help_of(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    def call(*arguments: str, columns: int = 80) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        assert main([*arguments, "--help"]) == 0
        return capsys.readouterr().out

    return call


def words(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("name", COMMANDS)
def test_each_key_of_a_command_is_shown_with_its_comment(name: str, help_of) -> None:
    out = words(help_of(name, *(["what=train"] if name == "bench" else [])))  # what=data sets another device
    typed = {inside: key for key, inside in COMMANDS[name].renamed.items()}
    lines = re.findall(r"^(\w+): ([^{#\n]*?)(?: # (.*))?$", (conf_dir() / f"{name}.yaml").read_text(), flags=re.M)
    assert lines
    for key, value, comment in lines:
        assert words(f"{typed.get(key, key)}={value} {comment}") in out


def test_start_says_its_purpose_once(help_of) -> None:
    assert words(help_of("start")).count("from a folder of pictures to samples") == 1


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("arguments", [["train"], ["import", "format=var"], ["bench", "what=tokenizer_train"]])
def test_help_fits_the_terminal(arguments: list[str], columns: int, help_of) -> None:
    lines = help_of(*arguments, columns=columns).splitlines()
    assert columns - 10 < max(map(len, lines))
    assert not [line for line in lines if len(line) > columns and len(line.split()) > 1]


def test_help_lists_the_experiments(help_of) -> None:
    out = help_of("train")
    folder = conf_dir() / "experiment"
    for file in folder.rglob("*.yaml"):
        question = description(file)[0].removeprefix("Question: ")
        assert words(f" {file.relative_to(folder).with_suffix('')} {question}") in words(out)


def test_help_follows_what_is_chosen(help_of) -> None:
    revival = "task.revival.every=4096 images; a code that none of them used is replaced"
    assert revival in words(help_of("train", "task=tokenizer", "seed=3")) and revival not in words(help_of("train"))
    chosen = words(help_of("train", "-m", "experiment=digits/generator", "order=raster,random", "seed=0,1"))
    assert "Expected: class accuracy 97% or more" in chosen
    assert "budget.flops=6e+12 forward and backward of what is trained" in chosen
    assert "log.every=10" in help_of("train", "log.every=10")


def test_help_shows_the_comments_of_a_folder_of_ones_own(tmp_path: Path, help_of) -> None:
    (tmp_path / "order").mkdir()
    (tmp_path / "order" / "mine.yaml").write_text(
        "# A path of mine.\n_target_: my_order.Mine\nturns: 3 # to the left\n"
    )
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "first.yaml").write_text("# @package _global_\n# Question: does it learn?\nseed: 5\n")
    out = words(help_of("train", "--config-dir", str(tmp_path), "order=mine"))
    assert "order=mine A path of mine. others:" in out and "order.turns=3 to the left" in out
    assert "first does it learn?" in out
    (tmp_path / "experiment" / "second.yaml").write_bytes(b"# no \xff UTF-8\n")
    assert "second no" in words(help_of("train", "--config-dir", str(tmp_path)))


def test_misspelt_keys_are_named_in_help_too(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "budget.image=3", "--help"]) == 1
    assert "did you mean 'budget.images'?" in capsys.readouterr().err


def test_comments_are_found_beside_and_above(tmp_path: Path) -> None:
    file = tmp_path / "some.yaml"
    file.write_text(
        "# @package _global_\n# What it is\n#   in two lines\ndefaults:\n  - override /crop@crop: centre # which part\n"
        "  - optional order: null # maybe\n"
        "  - _self_\n\nname: 'a # b' # its name\nplain: 1\n# of both\n# keys\nlist: [1,\n  2] # two\ninside: # a block\n"
        "  # over it\n  key: null\n  flow: {a: 1} # one line\n"
    )
    comments = read_comments(file, "data")
    assert description(file) == ["What it is", "  in two lines"]
    assert comments.groups == {"crop@data.crop": "which part", "order": "maybe"}
    assert comments.keys == {
        "data.name": "its name",
        "data.list": "of both keys two",
        "data.inside": "a block",
        "data.inside.key": "over it",
        "data.inside.flow": "one line",
    }
    file.write_text("# nothing\n")
    assert not read_comments(file, "").keys and description(file) == ["nothing"]
