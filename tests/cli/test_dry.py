"""``dry=true`` says what a training needs, leaves no file, and refuses what the training would refuse."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests import small
from varlab.cli.main import main


def files(folder: Path) -> set[str]:
    return {str(path) for path in folder.resolve().rglob("*")}


@pytest.fixture
def here(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "runs").symlink_to(lab)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("asked", "trained"), [(small.GENERATOR, "next_scale"), (small.CLASSIFIER, "judge"), (small.TOKENIZER, "multi")]
)
def test_it_says_what_a_training_needs_and_leaves_nothing(
    asked: tuple[str, ...], trained: str, here: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = files(here / "runs")
    assert main(["train", *asked, *small.RUNS[trained], "dry=true"]) == 0
    said = " ".join(capfd.readouterr().err.split())
    assert files(here / "runs") == before and {path.name for path in here.iterdir()} == {"runs"}
    cost = small.record(next((here / "runs").rglob(f"{trained}*/run.json")).parent)["cost"]
    assert re.search(rf"parameters │ {cost['parameters']:,} │", said)
    for name in ("weights", "gradients", "moments", "average", "activations", "peak of a device"):
        assert float(re.search(rf"memory: {name} │ ([\d.]+) MiB", said)[1]) > 0
    assert re.search(r"minutes │ [\d.,]+ \(measured: \d+ updates\)", said)


def test_it_refuses_what_a_training_refuses(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before, messages = files(here / "runs"), []
    for dry in ("dry=true", "dry=false"):
        assert main(["train", *small.GENERATOR, "order=raster", "tokenizer_run=runs/nothing", dry]) == 1
        messages.append(capfd.readouterr().err)
    assert messages[0] == messages[1] and "runs/nothing" in messages[0] and files(here / "runs") == before
