"""What people type reaches Hydra with its meaning unchanged."""

from __future__ import annotations

import shlex
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from tests import small
from varlab.cli.app import _hydra, _parse
from varlab.cli.arguments import rewrite
from varlab.cli.command_table import COMMANDS
from varlab.cli.main import main
from varlab.cli.typed_value import in_grammar
from varlab.config import conf_dir
from varlab.errors import VarlabError
from varlab.launch.sweep import compose

GROUPS = {"order", "loss", "digits/loss"}
paths = st.from_regex(r"[a-z0-9_./][A-Za-z0-9_./=+-]{0,30}", fullmatch=True)


def rewritten(*arguments: str, positional: str | None = "run", multirun: bool = False) -> list[str]:
    is_group = GROUPS.__contains__
    return rewrite(arguments, command="cmd", positional=positional, multirun=multirun, is_group=is_group)


def values(override: str) -> list[str]:
    """What Hydra reads out of an override: its value, or the values it sweeps over."""
    parsed = OverridesParser.create().parse_override(override)
    found = list(parsed.sweep_iterator()) if parsed.is_sweep_override() else [parsed.value()]
    return [value.text if hasattr(value, "text") else value for value in found]


def test_report_takes_any_number_of_paths() -> None:
    (one,) = rewritten("runs/a/order=raster+seed=0", "runs/b/", positional="runs")
    assert [getattr(v, "text", v) for v in values(one)[0]] == ["runs/a/order=raster+seed=0", "runs/b"]


@given(paths)
def test_one_path_arrives_letter_by_letter(path: str) -> None:
    (one,) = rewritten("runs/" + path)
    assert one.startswith("run=")
    assert values(one) == [("runs/" + path).rstrip("/")]


def test_under_multirun_commas_separate() -> None:
    (one,) = rewritten("run=runs/a=1,runs/b c (1)", multirun=True)
    assert values(one) == ["runs/a=1", "runs/b c (1)"]
    (one,) = rewritten("runs/a=1", "runs/b", multirun=True)
    assert values(one) == ["runs/a=1", "runs/b"]


@pytest.mark.parametrize(
    "argument",
    [
        "order=raster",
        "order=raster,random",
        "data.batch=3",
        "+a.b=1",
        "~a.b",
        "~order",
        "digits/loss=vqgan",
        "loss@a.b=vqgan",
        "hydra/launcher=joblib",
        "a='x=1'",
        "a={b:1}",
        "out='my photos (1)'",
        "out=${name}/x",
        "path=[a,b]",
        "out=null",
        "out=",
        "init=choice(a,b)",
        "order.path={_target_: a.b}",
        "classes=10",
        "labels=[0,-1,cat,'3']",
        "label=null",
        "tokenizer.scales=[[1,1],[2,2]]",
        "data.batch=[1",
    ],
)
def test_all_else_passes_untouched(argument: str) -> None:
    assert rewritten(argument) == [argument]


def test_flags_keep_their_values() -> None:
    words = ["--config-dir", "my/conf", "runs/a=1", "-c", "job", "seed=1"]
    args = _parse(COMMANDS["sample"], words)
    assert (args.config_dir, args.cfg, args.overrides) == ("my/conf", "job", ["seed=1", "run='runs/a=1'"])


def test_bare_words_where_none_are_taken() -> None:
    with pytest.raises(VarlabError, match="'digits' is not key=value"):
        rewritten("digits", positional=None)
    with pytest.raises(VarlabError, match="-m runs/a runs/b"):
        rewritten("runs/a", "runs/b")


# -- paths ---------------------------------------------------------------------------------------------------------------

KINDS = OmegaConf.to_container(OmegaConf.load(conf_dir() / "typed_values.yaml"))
WHOLE = {"bench": ["data=shards"], "import": ["format=var"], "export": ["format=var"], "pack": ["source=folder"]}
NEEDED = {"encode": "run", "sample": "run", "edit": "run", "evaluate": "run", "export": "run", "report": "runs"}
letters = st.sampled_from([*"aZ9 ()[]{}é写'\"#&~,=$\\:%!;*?|<>@+-._^`", "\u0301"])
folder_names = st.text(letters, min_size=1, max_size=12).filter(
    lambda name: name.strip(".") and name not in ("~", "???") and not name.isdigit()
)


def composed(command: str, *arguments: str) -> DictConfig:
    """The configuration of a command line."""
    args = _parse(COMMANDS[command], [*WHOLE.get(command, []), *arguments])
    with _hydra(COMMANDS[command], None) as hydra:
        return compose(hydra, command, args.overrides)


@cache
def path_keys(command: str) -> list[str]:
    """The keys of a command whose value is a path."""
    cfg = composed(command)
    keys = [key for kind in ("path", "paths", "classes") for key in KINDS[kind]]
    parents = {key: OmegaConf.select(cfg, key.rpartition(".")[0]) if "." in key else cfg for key in keys}
    last = {key: key.rpartition(".")[2] for key in keys}
    return [
        k
        for k in keys
        if parents[k] is not None and last[k] in parents[k] and not OmegaConf.is_interpolation(parents[k], last[k])
    ]


@pytest.mark.parametrize("command", sorted(COMMANDS))
@settings(max_examples=2)
@given(folder_names)
def test_a_path_that_exists_arrives_letter_by_letter(command: str, name: str) -> None:
    """In each key of the command that takes a path, and without a key."""
    with TemporaryDirectory() as folder, small.inside(Path(folder)):
        Path(name).mkdir()
        keys = path_keys(command)
        cfg = composed(command, *(f"{key}={name}" for key in keys))
        assert {key: OmegaConf.select(cfg, key) for key in keys} == dict.fromkeys(keys, name)
        if command in NEEDED:
            run = composed(command, f"./{name}")[NEEDED[command]]
            assert run == (f"./{name}" if NEEDED[command] == "run" else [f"./{name}"])


@pytest.mark.parametrize("key", ["out", "path", "classes"])
@settings(max_examples=100)
@given(folder_names)
def test_hydra_reads_a_path_that_exists(key: str, name: str) -> None:
    with TemporaryDirectory() as folder, small.inside(Path(folder)):
        Path(name).mkdir()
        (read,) = values(f"{key}={in_grammar(key, name, multirun=False)}")
        assert OmegaConf.create({key: read})[key] == name


@pytest.mark.parametrize(
    "path",
    [
        "my photos (1)",
        "/data/été",
        "写真",
        "it's",
        "/data/a#b",
        "a&b",
        "{x}",
        "[1]",
        "2024",
        "1e5",
        "runs/a=b",
        "x[1]{2}'",
    ]
    + ["pipe:aws s3 cp s3://b/val-{00..15}.tar -"],
)
def test_a_path_of_a_new_folder_needs_no_quotes(path: str) -> None:
    assert composed("sample", f"out={path}", "run=a").out == path
    assert [composed("report", path, path).runs] == [[path, path]]


def test_the_home_directory_is_found_inside_a_shells_quotes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert composed("sample", "~/runs/a", "out=~/b").run == "/home/me/runs/a"
    assert composed("sample", "~/runs/a", "out=~/b").out == "/home/me/b"


def test_lists_of_paths_and_names_need_no_quotes_inside() -> None:
    assert composed("pack", "source=parquet", "path=[my a.parquet,été.parquet]").path == ["my a.parquet", "été.parquet"]
    assert composed("sample", "run=a", "labels=[3,'3',写真,true,'a, b']").labels == [3, "3", "写真", "true", "a, b"]
    assert composed("edit", "run=a", "label=tench, Tinca tinca").label == "tench, Tinca tinca"
    assert composed("pack", "source.split.val=été|val").source.split.val == "été|val"
    assert composed("report", "a", "title=Zahlen, März (it's)").title == "Zahlen, März (it's)"


@pytest.mark.parametrize("argument", ["out=a, b", "seed=[1", "seed='a", "out=choice(a,b)"])
def test_what_is_ambiguous_is_shown_in_quotes_that_work(
    argument: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["report", "a", argument]) == 1
    (word,) = shlex.split(capsys.readouterr().err.rpartition("write ")[2])
    key, _, value = argument.partition("=")
    assert composed("report", "a", f"+{word}" if key == "seed" else word)[key] == value
