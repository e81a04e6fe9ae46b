"""Law 8: stop and resume equals never stopping, to the last bit; and what a killed run leaves behind is enough."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from tiny_tasks import (
    Interrupted,
    Kill,
    Killed,
    classifier_task,
    generator_task,
    gumbel_task,
    held_back_task,
    random_order_task,
    same_state,
    tokenizer_task,
    train,
)

from varlab.checkpoint import load_checkpoint, load_weights, read_metadata
from varlab.errors import Stopped
from varlab.types import VarlabError

TASKS = [classifier_task, generator_task, random_order_task, tokenizer_task, held_back_task, gumbel_task]


def _lines(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def _numbers(directory: Path) -> list[dict[str, float]]:
    """All but what depends on the wall clock."""
    clocked = {"seconds", "train/images_per_second", "train/eta_seconds"}
    return [{k: v for k, v in line.items() if k not in clocked} for line in _lines(directory)]


@pytest.mark.parametrize(
    "make",
    [
        task if task in (generator_task, tokenizer_task) else pytest.param(task, marks=pytest.mark.slow)
        for task in TASKS
    ],
)
def test_killed_and_resumed_equals_never_stopped(make: Any, tmp_path: Path) -> None:
    whole = train(make(), tmp_path / "whole", images=72)
    for kill_at in (8, 40):
        kill_and_resume(make, kill_at, tmp_path / str(kill_at), whole)
        assert _numbers(tmp_path / "whole") == _numbers(tmp_path / str(kill_at))


def kill_and_resume(make: Any, kill_at: int, folder: Path, whole: Any) -> None:
    resumes: list[dict[str, int]] = []
    with pytest.raises(Killed):
        train(make(), folder, images=72, extra=(Kill(kill_at),))
    torch.manual_seed(99)  # a resumed process has another global state
    resumed = train(make(), folder, images=72, on_resume=resumes.append)
    assert same_state(whole.model.state_dict(), resumed.model.state_dict())
    assert same_state(whole.ema.weights(whole.model), resumed.ema.weights(resumed.model))
    for name, helper in whole.helpers().items():
        assert same_state(helper.state_dict(), resumed.helpers()[name].state_dict())
    saved = {8: 0, 40: 32}[kill_at]
    assert resumes == [{"from": saved, "repeated": kill_at - saved}]


@pytest.mark.parametrize("make", [generator_task, pytest.param(tokenizer_task, marks=pytest.mark.slow)])
def test_stopped_in_validation_equals_never_stopped(make: Any, tmp_path: Path) -> None:
    """After the log point of the same update, which the resumed run writes again with the same values."""
    whole = train(make(), tmp_path / "whole", images=72)
    with pytest.raises(Stopped, match="SIGTERM after 48 images"):
        train(make(), tmp_path / "stopped", images=72, every=1000, data=Interrupted())
    state = torch.load(tmp_path / "stopped" / "last.ckpt", weights_only=True)
    assert state["images"] == 48 and state["pending"] == 8
    del state["pending"], state["logged"], state["sealed"]
    torch.save({**state, "owed": 8}, tmp_path / "stopped" / "last.ckpt")  # as earlier versions wrote it
    resumed = train(make(), tmp_path / "stopped", images=72)
    assert same_state(whole.model.state_dict(), resumed.model.state_dict())
    assert same_state(whole.ema.weights(whole.model), resumed.ema.weights(resumed.model))
    assert _numbers(tmp_path / "whole") == _numbers(tmp_path / "stopped")


def test_a_kept_state_is_the_same_after_a_stop_at_its_update(tmp_path: Path) -> None:
    """Though the run was stopped before it could keep it."""
    train(generator_task(), tmp_path / "whole", images=72, keep=(41,))
    with pytest.raises(Stopped):
        train(generator_task(), tmp_path / "stopped", images=72, every=1000, data=Interrupted(), keep=(41,))
    assert not (tmp_path / "stopped" / "kept-48.ckpt").exists()
    train(generator_task(), tmp_path / "stopped", images=72, keep=(41,))
    whole, stopped = (load_checkpoint(tmp_path / name / "kept-48.ckpt") for name in ("whole", "stopped"))
    assert same_state(whole["modules"]["model"], stopped["modules"]["model"]) and stopped["pending"] == 0
    with pytest.raises(VarlabError, match=r"checkpoint.keep is \(0,\): give a list of images"):
        train(generator_task(), tmp_path / "none", images=72, keep=(0,))


def test_logging_and_validation_have_no_say_in_the_weights(tmp_path: Path) -> None:
    often = train(tokenizer_task(), tmp_path / "often", images=48, val_every=8)
    seldom = train(tokenizer_task(), tmp_path / "seldom", images=48, val_every=None)
    assert same_state(often.model.state_dict(), seldom.model.state_dict())


def test_a_finished_training_has_nothing_left_to_do(tmp_path: Path) -> None:
    first = train(generator_task(), tmp_path, images=32)
    lines = _lines(tmp_path)
    again = train(generator_task(), tmp_path, images=32)
    assert again.images == 32 and _lines(tmp_path) == lines
    assert same_state(first.model.state_dict(), again.model.state_dict())


def test_exports_are_the_average_and_the_raw_weights(tmp_path: Path) -> None:
    task = train(generator_task(), tmp_path, images=32)
    raw, average = generator_task().model, generator_task().model
    load_weights(raw, tmp_path / "weights_raw.safetensors")
    load_weights(average, tmp_path / "weights.safetensors")
    assert same_state(raw.state_dict(), task.model.state_dict())
    assert same_state(average.state_dict(), task.ema.weights(task.model))
    assert not same_state(raw.state_dict(), average.state_dict())
    assert read_metadata(tmp_path / "weights.safetensors") == {"images": "32"}


def test_checkpoint_holds_no_frozen_tokenizer(tmp_path: Path) -> None:
    train(generator_task(), tmp_path, images=16)
    state = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert set(state["modules"]) == {"model"}
    assert set(state["modules"]["model"]) == set(generator_task().model.state_dict())


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    train(generator_task(), tmp_path, images=16)
    with pytest.raises(VarlabError, match="another configuration"):
        train(generator_task(), tmp_path, images=32, config_hash="other")


@pytest.mark.parametrize(("every", "largest"), [(1, 8), (16, 16), (20, 16), (1000, 64)])
def test_no_more_than_every_images_are_at_risk(every: int, largest: int, tmp_path: Path) -> None:
    seen: list[int] = []

    class Watch(Callback):
        def on_train_batch_start(self, trainer: Any, task: Any, batch: Any, batch_idx: int) -> None:
            path = tmp_path / "last.ckpt"
            saved = torch.load(path, weights_only=True)["images"] if path.exists() else 0
            seen.append(task.images + 8 - saved)

    train(classifier_task(), tmp_path, images=64, every=every, extra=(Watch(),), val_every=None)
    assert max(seen) == largest


def test_metrics_are_cut_back_and_a_torn_line_is_dropped(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        train(classifier_task(), tmp_path, images=64, every=16, extra=(Kill(24),))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"images": 24, "val/lo')
    train(classifier_task(), tmp_path, images=64)
    train(classifier_task(), tmp_path / "whole", images=64)
    assert _numbers(tmp_path) == _numbers(tmp_path / "whole")
