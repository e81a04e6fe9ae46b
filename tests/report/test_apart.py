"""What is told of two runs: every difference that can matter, and none that cannot."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from tests import small
from tests.report import make_runs
from varlab.cli.main import main
from varlab.report import read_run, told_apart


def changed(run: Path, **parts: object) -> None:
    record = json.loads((run / "run.json").read_text()) | parts
    (run / "run.json").write_text(json.dumps(record))


def test_each_kind_of_difference_is_told(tmp_path: Path) -> None:
    a, b = (make_runs.generator(tmp_path / name, order="raster") for name in "ab")
    assert told_apart(read_run(a), read_run(b)) == []
    record = read_run(b).record
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
    told = told_apart(read_run(a), read_run(b))
    keys = [line.partition(":")[0] for line in told]
    assert {"budget.images", "code.diff", "data.hash", "hardware.cores", "seed", "versions.torch"} < set(keys)
    assert all(
        key.startswith(("budget.", "code.", "data.hash", "hardware.", "parents.", "seed", "versions.")) for key in keys
    ), keys
    assert "versions.torch: 2.13.0 → 2.12.0" in told
    assert any(
        line.startswith("parents.tokenizer.weights_sha256: ") and line.endswith(" → 000000000000…") for line in told
    )


def test_report_of_two_runs_prints_them(lab: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        assert main(["report", str(lab / "next_scale"), str(lab / "raster"), f"out={tmp_path}"]) == 0
    assert "config.order._target_: varlab.order.NextScale → varlab.order.Permutation" in caplog.text
    assert small.record(lab / "raster")["parents"]["tokenizer"]["weights_sha256"][:12] in caplog.text
