"""Other lengths of a training: what is refused, whether each remedy works when it is followed, and what the records say."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import small
from varlab.cli.main import main

Refused = Callable[..., str]
GENERATOR = (*small.RUNS["raster"], "pictures.every=null", "val.every=null")
CONSTANT = ("task.schedule.warmup=32", "task.schedule.cooldown=0")


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    def call(out: Path, *arguments: str) -> str:
        capsys.readouterr()
        assert small.train(out, *arguments) == 1
        return capsys.readouterr().err.splitlines()[-1]

    return call


def outcome(run: Path) -> tuple[str, int]:
    end = small.record(run)["outcome"]
    return end["state"], end["images"]


def test_a_finished_run_whose_rate_follows_its_length(lab: Path, tmp_path: Path, refused: Refused) -> None:
    """It stays finished; both ways out that the sentence names work when they are followed."""
    run = tmp_path / "run"
    assert small.train(run, *GENERATOR, "budget.images=64") == 0
    said = refused(run, *GENERATOR, "budget.images=128")
    assert "cannot go on from 64 to 128 images: from image 32 on, the learning rate" in said and outcome(run) == (
        "finished",
        64,
    )
    assert (
        f"use init={run} and another out=" in said
        and "loses the optimizer's moments, the averages and the position" in said
    )
    assert small.train(tmp_path / "init", *GENERATOR, "budget.images=128", f"init={run}") == 0
    again = re.findall(r"task\.schedule\.\w+=\d+", said)
    assert len(again) == 2
    for images in (64, 128):
        assert small.train(tmp_path / "constant", *GENERATOR, *again, f"budget.images={images}") == 0
    assert outcome(tmp_path / "constant") == ("finished", 128)


def test_a_shorter_length_than_was_trained_or_one_that_is_not_in_images(
    lab: Path, tmp_path: Path, refused: Refused
) -> None:
    run = tmp_path / "run"
    assert small.train(run, *GENERATOR, *CONSTANT, "budget.images=64") == 0
    assert "give budget.images=64 or more" in refused(run, *GENERATOR, *CONSTANT, "budget.images=32")
    words = [word for word in GENERATOR if not word.startswith("budget")]
    flops = 2 * small.record(run)["budget"]["flops"]
    assert refused(run, *words, *CONSTANT, f"budget.flops={flops}").endswith("give budget.images=128.")
    assert outcome(run) == ("finished", 64)


def test_a_run_that_has_cooled_down(lab: Path, tmp_path: Path, refused: Refused) -> None:
    """The sentence says which state to keep; then it says that the state is there."""
    cool = ("task.schedule.warmup=32", "task.schedule.cooldown=64")
    run, kept = tmp_path / "run", tmp_path / "kept"
    assert small.train(run, *GENERATOR, *cool, "budget.images=128") == 0
    said = refused(run, *GENERATOR, *cool, "budget.images=192")
    assert "from image 96 on, the learning rate (task.schedule) follows the length, and its state is at 128" in said
    assert "checkpoint.keep=[96]" in said
    same = refused(tmp_path / "x", *GENERATOR, *cool, "budget.images=192", f"from={run}")
    assert "from image 96 on" in same and same.endswith(said.partition(" is at 128.")[2])
    assert small.train(kept, *GENERATOR, *cool, "budget.images=128", "checkpoint.keep=[96]") == 0
    assert small.weights(kept) == small.weights(run)
    assert f"Use from={kept} and another out=" in refused(kept, *GENERATOR, *cool, "budget.images=192")
    longer = (*GENERATOR, *cool, "budget.images=192")
    assert small.train(tmp_path / "branch", *longer, f"from={kept}") == 0
    assert small.train(tmp_path / "straight", *longer) == 0
    assert small.weights(tmp_path / "branch") == small.weights(tmp_path / "straight")
    assert small.lines(tmp_path / "branch") == small.lines(tmp_path / "straight")
    assert small.record(tmp_path / "branch")["parents"]["from"]["file"].endswith("kept-96.ckpt")


def test_a_trunk_with_other_settings(lab: Path, tmp_path: Path, refused: Refused) -> None:
    trunk, out = tmp_path / "trunk", tmp_path / "run"
    assert small.train(trunk, *GENERATOR, *CONSTANT, "budget.images=64", "checkpoint.every=32") == 0
    longer = (*GENERATOR, *CONSTANT, "budget.images=96")
    said = refused(out, *longer, f"from={trunk}", "task.optimizer.lr=0.5", "seed=3")
    assert "was trained with other settings (" in said and "seed: 0 → 3" in said and "lr" in said
    assert "name one run" in refused(out, *longer, f"from={tmp_path}", "seed=3")
    assert "not a run directory" in refused(out, *longer, f"from={tmp_path / 'none'}")
    assert "no training" in refused(out, *longer, f"from={lab / 'data' / 'source=digits'}")
    assert not (out / "last.ckpt").exists() and outcome(trunk) == ("finished", 64)


def test_a_sweep_of_cool_downs_finds_its_trunks_in_a_folder(lab: Path, tmp_path: Path) -> None:
    """Each job takes the run of its own seed; a branch that was stopped goes on without its trunk."""
    common = ("-m", *GENERATOR, "task.schedule.warmup=32", "task.schedule.cooldown=32", "seed=0,1")
    keep = ("checkpoint.keep=[64]", f"out={tmp_path / 'runs'}")
    assert main(["train", *common, *keep, "budget.images=160"]) == 0
    assert main(["train", *common, *keep, "budget.images=96", f"from={tmp_path / 'runs'}"]) == 0
    records = [json.loads(file.read_text()) for file in sorted((tmp_path / "runs").glob("*budget.images=96*/run.json"))]
    assert len(records) == 2
    for record in records:
        trunk = record["parents"]["from"]
        assert f"seed={record['seed']}" in trunk["run"] and trunk["images"] == 64
    assert main(["report", str(tmp_path / "runs"), f"out={tmp_path / 'report'}"]) == 0
    header, *rows = (tmp_path / "report" / "results.csv").read_text().splitlines()
    assert header.endswith("inherited_images,inherited_flops") and sum(",64," in row for row in rows) == 2


def test_a_damaged_trunk_is_refused_before_training(lab: Path, tmp_path: Path, refused: Refused) -> None:
    trunk = tmp_path / "trunk"
    assert small.train(trunk, *GENERATOR, *CONSTANT, "budget.images=64") == 0
    checkpoint = trunk / "last.ckpt"
    content = bytearray(checkpoint.read_bytes())
    content[len(content) // 2] ^= 1
    checkpoint.write_bytes(content)
    longer = (*GENERATOR, *CONSTANT, "budget.images=96")
    assert "last.ckpt" in refused(tmp_path / "run", *longer, f"from={trunk}")
    assert small.train(tmp_path / "seed", *GENERATOR, *CONSTANT, "budget.images=64", "seed=1") == 0
    shutil.copy(tmp_path / "seed" / "last.ckpt", checkpoint)
    assert "of another configuration" in refused(tmp_path / "other", *longer, f"from={trunk}")
