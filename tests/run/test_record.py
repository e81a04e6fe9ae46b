"""``run.json``: read once, written as it was; and the one table of keys that do not count."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from varlab.errors import VarlabError
from varlab.json_file import read_json
from varlab.recipe.trainer.parts import DEFAULT_CALLBACKS
from varlab.run.config_keys import Use, compare, counted, uncounted
from varlab.run.record import Parent, RunRecord, read_finished, read_record, write_record

CARRIED = {"run": "a", "file": "a/weights.safetensors", "weights_sha256": "1", "config": {}, "flops": 0, "images": 3}
JUDGE = {"run": "b", "weights_sha256": "2"}


def test_a_record_is_written_as_it_was_read(tmp_path: Path) -> None:
    values = RunRecord(command="train", config={"seed": 1}, seed=1).to_json() | {
        "parents": {"tokenizer": CARRIED, "judge": JUDGE | {"note": "kept"}, "run": {"run": "c"}},
        "outcome": {"state": "failed", "error": "full", "images": {"train": 3}, "scores": {"fid": 1.5}},
        "build": {"transformer": {}},
        "later": {"unknown": [1]},
    }
    (tmp_path / "run.json").write_text(json.dumps(values))
    record = read_record(tmp_path)
    assert record.kind == "generator" and record.extra == {"later": {"unknown": [1]}}
    assert record.parents["tokenizer"] == Parent("a", "1", "a/weights.safetensors", {}, 0, 3)
    assert (record.outcome.images, record.outcome.flops, record.outcome.seconds) == (0, 0, 0)
    write_record(tmp_path, record)
    assert read_json(tmp_path / "run.json") == values


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"parents": []}, "parents is not a dict"),
        ({"parents": {"judge": "runs/judge"}}, r"parents\.judge is not a JSON object"),
        ({"overrides": "seed=1"}, "overrides is not a list"),
        ({"overrides": [5]}, r"overrides is not a list\[str\]"),
        ({"build": 5}, "build is not a dict"),
        ({"seed": "x"}, "seed is not a int | None"),
        ({"versions": {"torch": 2}}, "versions is not a dict"),
        ({"resumes": [3]}, "resumes is not a list"),
        ({"parents": {"judge": {"images": "many"}}}, r"parents\.judge\.images is not a int"),
        ({"outcome": {}}, r"outcome\.state is missing"),
        ({"outcome": {"state": "\x1b[31mred"}}, r"outcome\.state is not one of running, finished"),
        ({"outcome": {"state": "failed", "error": 5}}, r"outcome\.error is not a str"),
    ],
)
def test_a_damaged_record_is_refused_with_the_reason(tmp_path: Path, change: dict, reason: str) -> None:
    (tmp_path / "run.json").write_text(json.dumps(RunRecord(command="train").to_json() | change))
    with pytest.raises(VarlabError, match=reason):
        read_record(tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[" * 200_000, "nested more than 100 deep"),
        (b'{"config": ' + b"[" * 150 + b"]" * 150 + b"}", "nested more than 100 deep"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "a number has 5000 digits"),
        (b"\xff\xfe{}", "can't decode byte 0xff"),
        (b"", "Expecting value"),
    ],
)
def test_a_file_that_is_no_record_is_refused_with_the_reason(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(VarlabError, match=reason):
        read_record(tmp_path)


def test_a_pipe_in_the_place_of_a_record_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "run.json")
    with pytest.raises(VarlabError, match="it is no plain file"):
        read_record(tmp_path)


def test_totals_that_are_no_numbers_count_as_none(tmp_path: Path) -> None:
    text = '{"outcome": {"state": "finished", "images": Infinity, "flops": NaN, "seconds": "long"}}'
    (tmp_path / "run.json").write_text(text)
    outcome = read_record(tmp_path).outcome
    assert (outcome.images, outcome.flops, outcome.seconds) == (0, 0, 0)


def test_an_unfinished_run_is_refused(tmp_path: Path) -> None:
    write_record(tmp_path, RunRecord(command="train"))
    with pytest.raises(VarlabError, match="is running, not finished"):
        read_finished(tmp_path)


def test_a_folder_that_is_no_run_names_the_nearest_runs_below_it(tmp_path: Path) -> None:
    with pytest.raises(VarlabError, match=r"no run\.json\. Name the directory of a run, which `varlab train`"):
        read_record(tmp_path / "none")
    for name in ("demo/generator/raster", "demo/judge", "emoji/judge"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "run.json").touch()
    with pytest.raises(VarlabError) as refused:
        read_record(tmp_path)
    assert str(refused.value).endswith(f"Name one of its runs: {tmp_path / 'demo/judge'}, {tmp_path / 'emoji/judge'}.")


def test_each_use_leaves_out_its_own_keys() -> None:
    config = {"out": "a", "shrink": [], "trainer.threads": 1, "transformer.width": 8, "transformer.norm": "rms", "x": 1}
    assert list(counted(config, Use.IDENTITY)) == ["trainer.threads", "transformer.width", "transformer.norm", "x"]
    assert list(counted(config, Use.SCIENCE | Use.SCALING)) == ["transformer.norm", "x"]
    watching = {"logger", "profiler", "trust", "data.timeout", *(f"callbacks.{name}" for name in DEFAULT_CALLBACKS)}
    own = {"out", "name", "launch", "report", "shrink", "trainer", "from", "dry", "encode_once"}
    own |= {"checkpoint.keep", "checkpoint.best"}
    assert set(uncounted(Use.HASH)) == own | watching


def test_values_are_compared_as_json() -> None:
    assert compare({"a": (1,), "b": {"c": 1}}, {"a": [1], "b": {"c": 1}}) == {}
    assert compare({"a": 1}, {"a": True}, {}) == {"a": (1, True, "—")}


@pytest.mark.parametrize("command", ["import varlab.run.record", "from varlab.cli.main import main; main(['--help'])"])
def test_the_light_modules_import_nothing_heavy(command: str) -> None:
    code = f"import sys; {command}; sys.exit(bool({{'torch', 'hydra', 'omegaconf', 'numpy'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0
