"""What varlab wrote at commit d11e80b still loads, samples, scores, reports and resumes (see ``make.py``)."""

from __future__ import annotations

import json
import logging
import math
import re
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import small
from tests.old import answers
from varlab import renames
from varlab.checkpoint import load_checkpoint
from varlab.recipe.objects import make
from varlab.recipe.plan import make_plan
from varlab.renames import MOVED, current_targets
from varlab.report import describe_differences, find_runs
from varlab.report.variants import group_variants
from varlab.run.directory import RunDirectory

HERE = Path(__file__).parent
STORED: dict[str, Any] = json.loads((HERE / "answers.json").read_text())
SLOW = {"asked_two_ranks"}
BOUND = 1e-3  # relative, of floats: kernels and processors round differently; a tenth of it absolute
# validation has since been computed by the code of `varlab evaluate`, which rounds to float32 in another place
ROUNDED = dict.fromkeys(["val/nll", "val/psnr", "val/l1", "val/perceptual"], 1e-6)
FLOOR = {f"floor{what}" for what in ("", "_low", "_high", "_b", "_b_low", "_b_high", "_a")}
NEW = {
    "inherited_images",
    "inherited_flops",
    "fid_error",
    "ris",
    "duplicates",
    *FLOOR,
}  # columns of tables and scores that have come since
BOUNDS = {"killed_tokenizer": 2e-2}  # λ of the adaptive loss is a ratio of small gradients: SSE and AVX2 differ by 5e-4


@pytest.fixture(scope="module")
def stored_runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stored runs; nothing in them is to be changed."""
    folder = tmp_path_factory.mktemp("stored")
    with tarfile.open(HERE / "runs.tar.xz") as tar:
        tar.extractall(folder, filter="data")
    return folder / "runs"


@pytest.fixture
def old_runs(stored_runs: Path, tmp_path: Path) -> Iterator[Path]:
    """A copy of the stored runs, with the folder above as the current one."""
    shutil.copytree(stored_runs, tmp_path / "runs")
    with small.inside(tmp_path):
        yield tmp_path / "runs"


def assert_same(mine: Any, stored: Any, where: str, bound: float) -> None:
    """Floats within the bound, also those in the text of a table; everything else equal."""
    mine, stored = _number(mine), _number(stored)
    if isinstance(stored, dict):
        assert isinstance(mine, dict) and [key for key in mine if key not in NEW] == list(stored), where
        for key in stored:
            assert_same(mine[key], stored[key], f"{where}.{key}", max(bound, ROUNDED.get(key, 0)))
    elif isinstance(stored, list):
        assert isinstance(mine, list) and len(mine) == len(stored), where
        for i, (a, b) in enumerate(zip(mine, stored, strict=True)):
            assert_same(a, b, f"{where}[{i}]", bound)
    elif isinstance(stored, float):
        assert math.isclose(mine, stored, rel_tol=bound, abs_tol=bound / 10), f"{where}: {mine} instead of {stored}"
    else:
        assert mine == stored, where


def _number(value: Any) -> Any:
    """The float that a text writes: a fit's last digit depends on the processor. Others as they are, whole numbers too."""
    if not isinstance(value, str) or re.fullmatch(r"-?\d+\.\d+(e[+-]?\d+)?", value) is None:
        return value
    return float(value)


@pytest.mark.numeric
@pytest.mark.parametrize(
    "question", [pytest.param(name, marks=pytest.mark.slow if name in SLOW else ()) for name in answers.ALL]
)
def test_the_same_answers(question: str, old_runs: Path) -> None:
    """Each is asked of untouched runs: tokens, pixels, logits, scores, tables, and the log of a resumed run to its end."""
    run = old_runs / "stopped" / question
    done = small.progress(run)
    mine = json.loads(json.dumps(answers.ALL[question]()))
    if question == "report":
        for row, old in zip(mine["scaling.csv"], STORED[question]["scaling.csv"], strict=True):
            assert row["against"] == "P"  # all parameters, which were called N; N is now the blocks', as in the paper
            row |= {key: old[key] for key in ("against", "paper_b")}
    assert_same(mine, STORED[question], question, BOUNDS.get(question, BOUND))
    if done:
        record = small.record(run)
        assert record["outcome"]["state"] == "finished" and record["resumes"] == [{"from": done, "repeated": 0}]


def test_an_encoding_that_was_stopped_is_finished(old_runs: Path) -> None:
    """Its first token shard stays, and the set is the one that the old code finished."""
    folder = old_runs / "tokens"
    whole, kept = json.loads((folder / "tokens.json").read_text()), folder / "train-000000.npy"
    for name in ("tokens.json", "val-000000.npy", "val.labels.npy"):
        (folder / name).unlink()
    record = small.record(folder)
    (folder / "run.json").write_text(json.dumps(record | {"outcome": {"state": "running", "error": None}}))
    written = kept.stat().st_mtime_ns
    answers.command("encode", *record["overrides"])
    made = json.loads((folder / "tokens.json").read_text())
    assert made.pop("sha256") and set(made.pop("labels")) == {
        "train",
        "val",
    }  # digests, which the old code did not write
    assert made == whole and kept.stat().st_mtime_ns == written


def test_a_training_starts_from_an_imported_run(old_runs: Path) -> None:
    record = small.record(answers.of_order("next_scale"))
    shorter = [word for word in record["overrides"] if word.partition("=")[0] not in ("budget.images", "order")]
    answers.command("train", *shorter, "init=runs/imported", "budget.images=16", "out=runs/new/tuned")
    assert small.record(old_runs / "new" / "tuned")["parents"]["init"]["run"] == "runs/imported"


def test_the_update_that_diverged_can_be_made_again(old_runs: Path) -> None:
    record, dump = small.record(old_runs / "diverged"), load_checkpoint(old_runs / "diverged" / "nan.ckpt")
    config = record["config"]
    with RunDirectory(old_runs / "diverged") as directory:
        plan = make_plan(config, make(config["data"]), directory)
    assert plan.task.replay(dump) == dump["names"] != []


def test_a_report_sees_no_difference_in_a_moved_name(old_runs: Path) -> None:
    """Between a run of then and the same of now."""
    old = answers.of_order("raster")
    record = small.record(old)
    assert any(name in json.dumps(record["config"]) for name in MOVED), "no name has moved: this test sees nothing"
    new = old_runs / "new"
    new.mkdir()
    (new / "run.json").write_text(json.dumps(current_targets(record)))
    first, second = find_runs([old, new])
    assert describe_differences(first, second) == []
    assert len(group_variants([first, second])) == 1


def test_a_users_yaml_with_old_names(old_runs: Path, caplog: pytest.LogCaptureFixture) -> None:
    conf = old_runs / "conf"
    for group in ("data", "source", "condition"):
        (conf / group).mkdir(parents=True)
    (conf / "source" / "mine.yaml").write_text(
        "_target_: varlab.data.tars.Tars\npath: runs/data/foreign\nsize: 8\nresample: lanczos\nlabel: auto\nclasses: null\n"
        "split: {val: null, train: null}\nval_fraction: 0.1\nseed: 0\ncheck: decode\n"
    )
    (conf / "condition" / "mine.yaml").write_text(
        "_target_: varlab.data.conditions.Edges\nsigma: 1.0\nlow: 0.05\nhigh: 0.15\n"
    )
    (conf / "data" / "mine.yaml").write_text(
        "defaults: [folder, _self_]\n_target_: varlab.data.tokenmodule.shards_or_tokens\npath: runs/mine/shards\n"
        "augment: {_target_: varlab.data.augment.Augment}\nworkers: 0\n"
    )
    mine = ("--config-dir", str(conf))
    renames._logged_name.cache_clear()
    with caplog.at_level(logging.INFO, "varlab"):
        answers.command("pack", *mine, "source=mine", "condition=mine", "out=runs/mine/shards", "workers=0")
        small_one = ("classifier.channels=[4,4,8]", "classifier.groups=2", "budget.images=32", "data.batch=16")
        answers.command("train", *mine, "task=classifier", "data=mine", *small_one, "out=runs/mine/run")
    assert small.record(old_runs / "mine" / "run")["outcome"]["state"] == "finished"
    logged = " ".join(record.getMessage() for record in caplog.records)
    assert "varlab.data.tokenmodule.shards_or_tokens has moved" in logged


def test_an_old_run_resumes_with_other_loaders_and_intervals(old_runs: Path) -> None:
    """Its checkpoint has the hash of the configuration that the run began with, which the record does not hold."""
    run = old_runs / "stopped" / "asked_generator"
    record, done = small.record(run), small.progress(run)
    answers.command("train", *record["overrides"], "data.workers=1", "checkpoint.every=64", "val.skip=true")
    (resumed,) = small.record(run)["resumes"]
    assert resumed["from"] == done and set(resumed["changed"]) == {"data.workers", "checkpoint.every", "val.skip"}
    stored = {line["images"]: line["train/loss"] for line in STORED["asked_generator"]["lines"] if "train/loss" in line}
    mine = {line["images"]: line["train/loss"] for line in small.lines(run) if "train/loss" in line}
    assert_same(mine, stored, "asked_generator", BOUND)
    assert small.record(run)["checkpoint_hash"] == load_checkpoint(run / "last.ckpt")["config_hash"]
