"""The commands that live here, run for real."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from varlab.cli.main import main
from varlab.run.record import read_record


@pytest.fixture
def packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    assert main(["pack", "source=digits"]) == 0
    return tmp_path / "runs/data/source=digits"


def test_pack_writes_shards_and_its_record(packed: Path) -> None:
    assert json.loads((packed / "index.json").read_text())["image_size"] == [16, 16]
    outcome = read_record(packed).outcome.to_json()
    assert outcome["state"] == "finished" and sum(outcome["summary"]["images"].values()) == 1797


def test_a_report_lands_among_its_runs_and_is_always_anew(packed: Path) -> None:
    for _ in range(2):
        assert main(["report", "runs/data/source=digits", "out=runs/data"]) == 0
        assert (packed.parent / "results.csv").exists()
        (packed.parent / "report.html").unlink()
    assert not (packed.parent / "run.json").exists()
