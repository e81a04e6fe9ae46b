"""A budget of time becomes images once, and is what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import small

TIMED = (
    *small.GENERATOR[:-1],
    "order=raster",
    "budget.images=null",
    "budget.seconds=1",
    "pictures.every=null",
    "val.every=null",
)


def test_seconds_become_images_once_and_train_as_those_images(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    assert small.train(run, *TIMED, *small.FAST) == 0
    record = small.record(run)
    images = record["budget"]["images"]
    assert record["outcome"]["images"] == images > 0 and images % 32 == 0
    assert 0.25 < record["outcome"]["seconds"] < 30  # of one: a noisy machine
    assert not list(run.rglob("*trial*"))
    counted = (*small.GENERATOR, "order=raster", "pictures.every=null", "val.every=null", f"budget.images={images}")
    assert small.train(tmp_path / "counted", *counted) == 0
    assert small.weights(run) == small.weights(tmp_path / "counted")
    (run / "last.ckpt").unlink()  # as if it had stopped before its first checkpoint
    told = record | {"outcome": {"state": "failed", "error": "x"}}
    (run / "run.json").write_text(json.dumps(told))
    monkeypatch.setattr("varlab.recipe.budget.BATCHES", 0)  # no second trial
    assert small.train(run, *TIMED, *small.FAST) == 0
    assert small.record(run)["budget"]["images"] == images


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("budget.seconds=-1",), "budget.seconds is -1"),
        (("budget.images=10", "budget.seconds=1"), "leave out budget.images or budget.seconds"),
        ((), "one of budget.images=N, budget.flops=F and budget.seconds=S"),
    ],
)
def test_budgets_that_make_no_sense(
    asked: tuple[str, ...], said: str, lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rest = [o for o in small.GENERATOR if not o.startswith("budget.")]
    assert small.train(tmp_path / "run", *rest, "order=raster", *asked) == 1
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_two_ranks_agree_on_their_pace(lab: Path, tmp_path: Path) -> None:
    """A command of its own, as ranks are: they train for as many images."""
    run, log = tmp_path / "run", tmp_path / "log"
    command = (
        "train",
        f"out={run}",
        *TIMED,
        "trainer=ddp",
        "trainer.devices=2",
        "trainer.accelerator=cpu",
    )
    assert small.Child(*command, log=log).wait() == 0, log.read_text()
    record = small.record(run)
    assert record["outcome"]["images"] == record["budget"]["images"] > 0
