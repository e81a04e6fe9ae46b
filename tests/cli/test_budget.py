"""A budget of time becomes images once, and is what it says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests import small

TIMED = (
    *small.GENERATOR[:-1],
    "order=raster",
    "task.schedule.warmup=640",
    "budget.images=null",
    "budget.seconds=1",
    "pictures.every=null",
    "val.every=null",
)


def test_seconds_become_images_once_and_the_trial_is_part_of_the_training(
    lab: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With a warm-up in images the weights equal, to the bit, those of a training that was given the images."""
    run, counted = tmp_path / "run", tmp_path / "counted"
    assert small.train(run, *TIMED) == 0
    said = "\n".join(entry.getMessage() for entry in caplog.records)
    assert said.index("measure this machine, and are kept") < said.index("1 seconds are")
    record = small.record(run)
    images = record["budget"]["images"]
    assert record["outcome"]["images"] == images > 0 and images % 32 == 0
    assert 0.25 < record["outcome"]["seconds"] < 30  # of one: a noisy machine
    rest = [word for word in TIMED if not word.startswith("budget.")]
    assert small.train(counted, *rest, f"budget.images={images}") == 0
    assert small.weights(run) == small.weights(counted) and small.lines(run) == small.lines(counted)


@pytest.mark.slow
def test_a_state_after_the_trial_leads_to_the_same_bits(lab: Path, tmp_path: Path) -> None:
    run, again = tmp_path / "run", tmp_path / "again"
    timed = (*TIMED, "task.schedule.warmup=0.5", "budget.seconds=2", "checkpoint.keep=[352]")
    assert small.train(run, *timed) == 0
    shutil.copytree(run, again, ignore=shutil.ignore_patterns("weights*", ".lock"))
    (again / "kept-352.ckpt").replace(again / "last.ckpt")
    begun = small.record(run) | {"outcome": {"state": "failed", "error": "x"}}
    (again / "run.json").write_text(json.dumps(begun))
    assert small.train(again, *timed) == 0
    assert small.record(again)["budget"] == small.record(run)["budget"]
    assert small.weights(again) == small.weights(run) and small.lines(again) == small.lines(run)


@pytest.mark.slow
def test_a_killed_run_keeps_the_trial_and_its_decision(lab: Path, tmp_path: Path) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    timed = (*TIMED, "checkpoint.every=100000000")  # only the decision saves
    child = small.Child("train", f"out={run}", *timed, log=log)
    assert child.until(lambda: (run / "run.json").exists() and small.record(run).get("budget")), log.read_text()
    child.kill()
    budget = small.record(run)["budget"]
    assert small.train(run, *timed) == 0
    record = small.record(run)
    assert record["budget"] == budget and record["outcome"]["images"] == budget["images"]
    assert 3 * 32 <= record["resumes"][0]["from"] <= 16 * 32


def test_a_trial_ends_early_where_updates_are_slow(lab: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert small.train(run, *TIMED, "budget.seconds=0.001") == 0
    assert small.record(run)["outcome"]["images"] == 3 * 32


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
