"""A trunk and its branch, and a run that was extended, equal one straight run to the last bit."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from tests import small
from varlab.checkpoint import load_checkpoint
from varlab.cli.main import main

WARM = ("task.schedule.warmup=32", "checkpoint.every=64", "log.every=32", "val.every=64", "tensorboard=false")
KINDS = {
    "generator": (*small.RUNS["next_scale"], *WARM, "order=random", "task.schedule.shape=sqrt"),
    "tokenizer": (*small.RUNS["multi"], *WARM, "loss.gan.start=48", "task.revival.every=64", "task.revival.until=160"),
    "classifier": (*small.RUNS["judge"], *WARM, "data.batch=32"),
}
RANKS = ("trainer.accelerator=cpu", "trainer.devices=2")
KINDS["generator on two ranks"] = (*KINDS["generator"], "trainer=ddp", *RANKS)
KINDS["sharded generator"] = (*KINDS["generator"], "trainer=fsdp", *RANKS)
COOL = ("budget.images=192", "task.schedule.cooldown=64")  # the rate falls from 128 images on
HOLD = ("budget.images=96", "task.schedule.cooldown=0")


def train(kind: str, out: Path, *more: str) -> Path:
    assert main(["train", f"out={out}", *KINDS[kind], *more]) == 0
    return out


def flat(value: object, name: str = "") -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint by their place."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    nested = {place: t for key, item in items for place, t in flat(item, f"{name}/{key}").items()}
    return {name: value} if isinstance(value, torch.Tensor) else nested


def assert_same(run: Path, straight: Path) -> None:
    """Weights, averages, moments and all other tensors of the state; and every line of the journal after the branch."""
    assert small.weights(run) == small.weights(straight)
    mine, others = (flat(load_checkpoint(folder / "last.ckpt")) for folder in (run, straight))
    assert mine.keys() == others.keys() and any("optimizers" in name for name in mine)
    assert all(torch.equal(mine[name], others[name]) for name in mine)
    assert small.lines(run)[-1] == small.lines(straight)[-1]
    assert small.record(run)["outcome"]["images"] == 192


@pytest.fixture(
    params=["generator", *(pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS if kind != "generator")]
)
def straight(request: pytest.FixtureRequest, lab: Path, tmp_path: Path) -> tuple[str, Path]:
    """(kind, one straight run with a cool-down)."""
    return request.param, train(request.param, tmp_path / "straight", *COOL)


def test_a_trunk_and_its_branch_are_a_straight_run(straight: tuple[str, Path], tmp_path: Path) -> None:
    """It needs its trunk no more when it has begun, and run.json says what the trunk had trained."""
    kind, whole = straight
    trunk = train(kind, tmp_path / "trunk", *HOLD)
    run = train(kind, tmp_path / "run", *COOL, f"from={trunk}")
    assert_same(run, whole)
    inherited = small.record(run)["parents"]["from"]
    assert (inherited["run"], inherited["images"]) == (str(trunk), 96)
    assert inherited["flops"] == small.record(trunk)["outcome"]["flops"]
    shutil.rmtree(trunk)
    assert main(["train", f"out={run}", *KINDS[kind], *COOL, f"from={trunk}"]) == 0


def test_an_extended_run_is_a_straight_run(straight: tuple[str, Path], tmp_path: Path) -> None:
    kind, whole = straight
    run = train(kind, tmp_path / "run", *HOLD)
    train(kind, run, *COOL)
    assert_same(run, whole)
    (resumed,) = small.record(run)["resumes"]
    assert resumed["from"] == 96 and resumed["changed"]["budget.images"] == [96, 192]
    assert small.record(run)["config"]["task"]["schedule"]["cooldown"] == 64
