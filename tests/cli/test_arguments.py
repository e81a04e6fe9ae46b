"""What people type reaches Hydra with its meaning unchanged."""

from __future__ import annotations

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from varlab.cli.app import _parse
from varlab.cli.arguments import quote, rewrite
from varlab.cli.command_table import COMMANDS
from varlab.errors import VarlabError

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


@given(paths)
def test_values_with_equals_arrive_letter_by_letter(path: str) -> None:
    assert values(quote(f"out=runs/order={path}", multirun=False)) == [f"runs/order={path}"]


def test_under_multirun_commas_separate() -> None:
    assert values(quote("run=runs/a=1,runs/b=2", multirun=True)) == ["runs/a=1", "runs/b=2"]
    assert values(quote("run=runs/a=1,runs/b=2", multirun=False)) == ["runs/a=1,runs/b=2"]
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
        "x=[a=b]",
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
