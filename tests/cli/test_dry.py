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
    ("asked", "trained"),
    [
        ((*small.GENERATOR, "encode_once=true"), "next_scale"),
        (small.CLASSIFIER, "judge"),
        (small.TOKENIZER, "multi"),
    ],
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
    assert ("encoded once │ 1,438 training images" in said) == ("encode_once=true" in asked)
    for name in ("weights", "gradients", "moments", "average", "activations", "peak of a device"):
        assert float(re.search(rf"memory: {name} │ ([\d.]+) MiB", said)[1]) > 0
    assert re.search(r"minutes │ [\d.,]+ \(measured: \d+ updates\)", said)


def test_it_refuses_what_a_training_refuses(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    before, messages = files(here / "runs"), []
    for dry in ("dry=true", "dry=false"):
        assert main(["train", *small.GENERATOR, "order=raster", "tokenizer_run=runs/nothing", dry]) == 1
        messages.append(capfd.readouterr().err)
    assert messages[0] == messages[1] and "runs/nothing" in messages[0] and files(here / "runs") == before


@pytest.mark.parametrize("more", [(), ("init=runs/next_scale",)])
def test_a_generator_that_does_not_fit_is_counted_from_its_shapes(
    more: tuple[str, ...], here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The table is the one of a machine with room, but for the minutes."""
    tables = []
    for room in (True, False):
        if not room:
            monkeypatch.setattr("varlab.recipe.trainer.memory.host_free_bytes", lambda: 0)
        assert main(["train", *small.GENERATOR, *small.RUNS["next_scale"], *more, "dry=true"]) == 0
        tables.append(capfd.readouterr().err)
    real, shapes = (re.findall(r"│ (?!minutes)(\S.*?) +│ (.*?) +│", table) for table in tables)
    assert real == shapes and len(real) > 8
    assert "(measured:" in tables[0] and "(not measured:" in tables[1]


STAGES = "task.stages={_target_:varlab.tasks.ScaleStages,until:0.8,first:0,warmup:0.01}"


def test_stages_have_the_length_of_the_training_not_of_its_trial(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The FLOPs are those of a forecast without a trial."""
    flops = []
    for measured in (True, False):
        if not measured:
            monkeypatch.setattr("varlab.recipe.trainer.memory.host_free_bytes", lambda: 0)
        assert main(["train", *small.GENERATOR, STAGES, "budget.images=3200", "dry=true"]) == 0
        said = " ".join(capfd.readouterr().err.split())
        assert ("(measured:" in said) == measured
        flops.append(re.search(r"FLOPs in all │ (\S+)", said)[1])
    assert flops[0] == flops[1]


def test_the_minutes_of_a_tokenizer_on_two_devices_are_those_of_its_training(
    here: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What encoding an image costs is in its record, but no part of the training."""
    monkeypatch.setattr("varlab.recipe.trainer.forecast.matrix_rate", lambda trainer: 1e9)
    assert main(["train", *small.RUNS["multi"], "budget.images=32000", "trainer.devices=2", "dry=true"]) == 0
    said = capfd.readouterr().err
    flops = float(re.search(r"FLOPs in all +│ (\S+)", said)[1])
    minutes = float(re.search(r"minutes +│ at least ([\d.]+)", said)[1])
    assert minutes == pytest.approx(flops / 1e9 / 2 / 60, rel=0.01)


def test_a_trial_is_whole_where_the_training_is_not(here: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """A training of two updates (fast_dev_run) on all devices there are is measured as any other."""
    assert main(["train", *small.CLASSIFIER, "trainer.fast_dev_run=2", "trainer.devices=auto", "dry=true"]) == 0
    said = " ".join(capfd.readouterr().err.split())
    assert "updates │ 2 │" in said and re.search(r"measured: (32|8) updates", said)
