"""Which runs are the same experiment under another seed, and what differs between experiments."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from tests import small
from varlab.cli.main import main
from varlab.report import describe_differences, find_runs, read_run
from varlab.report.variants import _short, group_variants, science

from . import make_runs


def test_place_and_seed_of_a_run_do_not_count() -> None:
    config = {"seed": 3, "out": "x", "name": "n", "launch": {"type": 1}, "model": {"seed": 3, "width": 8}}
    assert science(config) == {"model.width": 8}
    assert science({"judge_run": "runs/judge/seed=3+size=2"}) == {"judge_run": "runs/judge/seed+size=2"}


def test_seeds_of_one_configuration_are_one_variant(study: Path) -> None:
    variants = {variant.label: variant for variant in group_variants(find_runs([study]))}
    assert [run.seed for run in variants["next_scale"].runs] == [0, 1]
    assert [run.seed for run in variants["random"].runs] == [0], "an unfinished run enters no group"
    assert not variants["random · seed 1"].finished
    assert [v.kind for v in variants.values()] == ["generator"] * 5 + ["tokenizer"] * 2 + ["classifier"]


def test_variants_that_share_a_name_are_labelled_by_their_difference(tmp_path: Path) -> None:
    for cfg in (1.0, 2.0):
        make_runs.generator(tmp_path / f"cfg={cfg}", order="raster", cfg=cfg)
    assert {v.label for v in group_variants(find_runs([tmp_path]))} == {"raster · cfg 1.0", "raster · cfg 2.0"}


def test_labels_are_short_and_an_unfinished_twin_takes_the_longer_one(tmp_path: Path) -> None:
    for cfg in (0.1 * 3, 0.1 * 6):
        make_runs.generator(tmp_path / f"cfg={cfg}", order="raster", cfg=cfg)
    twin = make_runs.generator(tmp_path / "twin", order="raster", cfg=0.1 * 3, seed=1, state="failed")
    labels = {v.label for v in group_variants(find_runs([tmp_path]))}
    assert labels == {"raster · cfg 0.3", "raster · cfg 0.6", f"raster · cfg 0.3 · {twin.as_posix()}"}


def test_labels_are_unique_even_for_copies(tmp_path: Path) -> None:
    for folder in ("a", "b"):
        make_runs.generator(tmp_path / folder, order="raster", state="failed")
    labels = [v.label for v in group_variants(find_runs([tmp_path]))]
    assert len(set(labels)) == 2


def changed(run: Path, **parts: object) -> None:
    record = json.loads((run / "run.json").read_text()) | parts
    (run / "run.json").write_text(json.dumps(record))


def test_each_kind_of_difference_is_described(tmp_path: Path) -> None:
    a, b = (make_runs.generator(tmp_path / name, order="raster") for name in "ab")
    assert describe_differences(read_run(a), read_run(b)) == []
    record = json.loads((b / "run.json").read_text())
    changed(
        b,
        seed=3,
        versions=record["versions"] | {"torch": "2.12.0"},
        code=record["code"] | {"diff": "+x"},
        data=record["data"] | {"path": "elsewhere", "hash": "77"},
        hardware=record["hardware"] | {"cores": 64},
        budget={"images": 128},
        parents={"tokenizer": {"weights_sha256": "0" * 64}},
    )
    lines = describe_differences(read_run(a), read_run(b))
    keys = [line.partition(":")[0] for line in lines]
    assert {"budget.images", "code.diff", "data.hash", "hardware.cores", "seed", "versions.torch"} < set(keys)
    assert all(
        key.startswith(("budget.", "code.", "data.hash", "hardware.", "parents.", "seed", "versions.")) for key in keys
    ), keys
    assert "versions.torch: 2.13.0 → 2.12.0" in lines
    assert any(
        line.startswith("parents.tokenizer.weights_sha256: ") and line.endswith(" → 000000000000…") for line in lines
    )


def test_two_runs_compared(study: Path) -> None:
    next_scale, raster = (read_run(study / f"order={order}") for order in ("next_scale+seed=0", "raster+seed=1"))
    lines = describe_differences(next_scale, raster)
    assert "config.tokenizer_run: multi → single" in lines
    assert not any(line.startswith("config.seed") for line in lines)


def test_report_of_two_runs_prints_their_differences(
    lab: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        assert main(["report", str(lab / "next_scale"), str(lab / "raster"), f"out={tmp_path}"]) == 0
    assert "config.order._target_: varlab.order.NextScale → varlab.order.Permutation" in caplog.text
    assert small.record(lab / "raster")["parents"]["tokenizer"]["weights_sha256"][:12] in caplog.text


def test_a_seed_that_was_trained_twice_is_no_repetition(tmp_path: Path) -> None:
    for folder, seed in (("a", 0), ("again", 0), ("b", 1)):
        make_runs.generator(tmp_path / folder, order="raster", seed=seed)
    (variant,) = group_variants(find_runs([tmp_path]))
    assert len(variant.runs) == 3 and variant.seeds == [0, 1]
    assert len(variant.values("fid")) == 2 and variant.by_seed("fid").keys() == {0, 1}


def test_settings_that_are_called_alike_are_named_once() -> None:
    assert _short({"trainer.compile": True, "task.compile": True, "task.clip": 1.0}) == "compile True, clip 1.0"
