"""What a configuration from a file may build: varlab's own parts, what the user named, and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from varlab.config import conf_dir
from varlab.errors import VarlabError
from varlab.run.trust import Trust, named_targets, targets_of

FILE = Path("somewhere/run.json")
OWN = {"_target_": "varlab.order.Permutation", "path": {"_target_": "varlab.order.paths.raster", "_partial_": True}}
FOREIGN = [
    "os.system",
    "builtins.exec",
    "subprocess.Popen",
    "joblib.load",
    "torch.load",
    "torch.utils.collect_env.run",
    "pathlib.Path.write_text",
    "hydra.utils.instantiate",
    "varlab.files.write_text",
    "varlab.order",
    "varlab.order.paths.raster.__globals__",
    "varlab.order..Permutation",
    "varlab.recipe.plans.generator_plan.plan",
    "lightning.pytorch.Trainer",
    "",
    " varlab.order.Permutation",
    5,
    None,
    ["os.system"],
    {"_target_": "varlab.order.Permutation"},
]
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.sampled_from(["raster", "runs/x", "[1, 2]"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3),
)


@st.composite
def around(draw: st.DrawFn, inside: Any) -> Any:
    """A configuration that holds ``inside`` somewhere, however deep."""
    value = inside
    for kind in draw(st.lists(st.sampled_from(["key", "list", "_args_", "partial", "own"]), max_size=5)):
        value = {
            "key": {"a": draw(plain), "b": value},
            "list": [draw(plain), value],
            "_args_": {**OWN, "_args_": [value]},
            "partial": {"c": value, "_partial_": True, "_recursive_": False},
            "own": {**OWN, "path": value},
        }[kind]
    return value


@pytest.mark.parametrize("target", FOREIGN, ids=str)
def test_a_foreign_target_is_refused_at_any_depth(target: object) -> None:
    @settings(max_examples=4)  # thousands of such records: make attack
    @given(around({"_target_": target, "a": 1}))
    def refused(config: Any) -> None:
        with pytest.raises(VarlabError, match=r"would run .*trust=true"):
            Trust().check(config, FILE)
        Trust(everything=True).check(config, FILE)

    refused()


@settings(max_examples=15)
@given(around(OWN))
def test_own_parts_are_built_at_any_depth(config: Any) -> None:
    Trust().check(config, FILE)


@pytest.mark.parametrize(
    "value",
    [
        "${oc.env:HOME}",
        "a ${x} b",
        "pipe:touch x",
        " PIPE:touch x",
        "http://example.org/weights.pth",
        "file:///etc/passwd",
    ],
)
def test_references_commands_and_addresses_are_refused(value: str) -> None:
    with pytest.raises(VarlabError, match="trust=true"):
        Trust().check({**OWN, "vgg": [value]}, FILE)
    with pytest.raises(VarlabError, match=r"\$|trust=true"):
        Trust().check({"${a}": 1, "b": value}, FILE)


def test_images_may_lie_anywhere_but_no_command_brings_them() -> None:
    Trust().check({"path": "s3://bucket/shards", "shards": None}, FILE)
    with pytest.raises(VarlabError, match="a command to run"):
        Trust().check({"path": "pipe:cat x"}, FILE)


def test_the_message_shows_what_would_run_and_nothing_else() -> None:
    with pytest.raises(VarlabError) as error:
        Trust().check({"_target_": "\x1b[31m" + "x" * 1000 + "\n"}, FILE)
    text = str(error.value)
    assert "\x1b" not in text and "\n" not in text and len(text) < 400 and r"\x1b[31mxxx" in text


def test_a_record_deeper_than_the_stack_is_read() -> None:
    config: Any = {"_target_": "os.system"}
    for _ in range(100_000):
        config = [config]
    with pytest.raises(VarlabError, match=r"os\.system"):
        Trust().check(config, FILE)


def test_what_the_user_names_is_trusted(tmp_path: Path) -> None:
    (tmp_path / "order").mkdir()
    (tmp_path / "order" / "mine.yaml").write_text(
        "_target_: mine.Order\npath: {_target_: 'mine.path', _partial_: true}\n"
    )
    (tmp_path / "runs" / "foreign").mkdir(parents=True)
    (tmp_path / "runs" / "foreign" / "run.json").write_text("{}")
    (tmp_path / "runs" / "foreign" / "conf.yaml").write_text("_target_: os.system\n")
    assert named_targets(tmp_path) == {"mine.Order", "mine.path"}
    config = {"_target_": "mine.Order", "path": {"_target_": "mine.path"}}
    Trust.of(["mine.Order", "mine.path"]).check(config, FILE)
    Trust.of(True).check(config, FILE)
    with pytest.raises(VarlabError, match=r"mine\.path"):
        Trust.of(["mine.Order"]).check(config, FILE)
    with pytest.raises(VarlabError, match=r"mine\."):
        Trust.of(False).check(config, FILE)
    assert targets_of([config]) == {"mine.Order", "mine.path"}


def test_parts_that_train_write_or_start_something_are_not_among_varlabs_own() -> None:
    for group in ("callbacks", "logger", "profiler", "source", "task", "trainer"):
        for target in named_targets(conf_dir() / group):
            with pytest.raises(VarlabError):
                Trust().check({"_target_": target}, FILE)
