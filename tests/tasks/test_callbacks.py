"""What the callbacks write, when, and on which weights."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tiny_tasks import batch_at, classifier_task, generator_task, same_state, tokenizer_task, train

from varlab.data.image.grid import grid
from varlab.tasks.callbacks import InTrainingScores, Pictures, ProgressBar
from varlab.tasks.loggers import TensorBoard
from varlab.types import to_float, to_uint8


def _lines(directory: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (directory / "metrics.jsonl").read_text().splitlines()]


def test_lines_carry_the_clock_and_the_promised_names(tmp_path: Path) -> None:
    task = generator_task()
    task.train_flops_per_image = 1000
    train(task, tmp_path / "generator", images=48)
    for line in _lines(tmp_path / "generator"):
        assert line["flops"] == 1000 * line["images"] and line["seconds"] > 0
    names = set().union(*_lines(tmp_path / "generator"))
    train_names = ["loss", "loss/0", "loss/1", "loss/last", "accuracy", "accuracy/last", "lr", "grad_norm"]
    assert {f"train/{name}" for name in [*train_names, "images_per_second"]} <= names
    val_names = ["nll", "loss", "loss/0", "loss/last", "accuracy", "accuracy/last"]
    assert {f"val/{name}" for name in val_names} <= names
    train(tokenizer_task(), tmp_path / "tokenizer", images=48)
    names = set().union(*_lines(tmp_path / "tokenizer"))
    train_names = ["loss", "l1", "l2", "vq", "gan", "disc_loss", "lambda", "grad_rec", "grad_gan", "logits_real"]
    train_names += ["logits_fake", "usage/0", "perplexity/1", "revived", "lr", "grad_norm", "images_per_second"]
    assert {f"train/{name}" for name in train_names} <= names
    assert {"val/psnr", "val/l1", "val/usage/1", "val/perplexity/0"} <= names


def test_means_are_over_the_updates_since_the_last_log_point(tmp_path: Path) -> None:
    losses: list[float] = []

    class Spy(ProgressBar):
        def on_train_batch_end(self, trainer: Any, task: Any, *rest: Any) -> None:
            losses.append(task.last_loss)

    spy = Spy(console=Console(file=io.StringIO()), line_seconds=1e9)
    train(classifier_task(), tmp_path, images=48, extra=(spy,))
    logged = [line["train/loss"] for line in _lines(tmp_path) if "train/loss" in line]
    assert logged == pytest.approx([sum(losses[:3]) / 3, sum(losses[3:]) / 3])


def test_scores_and_pictures_see_averaged_weights_and_leave_no_trace(tmp_path: Path) -> None:
    task = tokenizer_task()
    seen: list[dict[str, torch.Tensor]] = []
    own: list[dict[str, torch.Tensor]] = []

    def score() -> dict[str, float]:
        seen.append({k: v.clone() for k, v in task.model.state_dict().items()})
        assert not task.model.training and not torch.is_grad_enabled()
        return {"fid": 3.0, "broken": float("nan")}

    def draw() -> dict[str, torch.Tensor]:
        images = batch_at(list(range(4))).img_u8_B3HW
        return {"reconstructions": grid(torch.cat([images, to_uint8(task.model(to_float(images))[0])]), columns=4)}

    class Own(InTrainingScores):
        def act(self, trainer: Any, task: Any) -> None:
            own.append({k: v.clone() for k, v in task.model.state_dict().items()})

    callbacks = (
        Own(scores=score, every=None),
        InTrainingScores(scores=score, every=None),
        Pictures(draw=draw, every=16),
    )
    train(task, tmp_path, images=32, extra=callbacks)
    assert same_state(seen[0], task.ema.weights(task.model)) and not same_state(seen[0], own[0])
    assert same_state(own[0], task.model.state_dict())
    scored = [line for line in _lines(tmp_path) if "val/fid" in line]
    assert [(line["images"], line["val/fid"]) for line in scored] == [(32, 3.0)] and "val/broken" not in scored[0]
    assert Image.open(tmp_path / "pictures" / "reconstructions.png").size == (4 * 8 + 3, 2 * 8 + 1)


def test_tensorboard_holds_each_number_once_after_a_resume(tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    class StopAt(ProgressBar):
        def on_train_batch_end(self, trainer: Any, task: Any, *rest: Any) -> None:
            if task.images >= 56:
                raise Stop

    with pytest.raises(Stop):
        stop = StopAt(console=Console(file=io.StringIO()), line_seconds=1e9)
        train(
            classifier_task(), tmp_path, images=96, every=32, extra=(stop,), loggers=(TensorBoard(save_dir=tmp_path),)
        )
    train(classifier_task(), tmp_path, images=96, every=32, loggers=(TensorBoard(save_dir=tmp_path),))
    events = EventAccumulator(str(tmp_path / "tb"))
    events.Reload()
    steps = [event.step for event in events.Scalars("train/loss")]
    assert steps == [line["images"] for line in _lines(tmp_path) if "train/loss" in line] == [24, 48, 72, 96]


def test_progress_is_a_bar_on_a_terminal_and_lines_elsewhere(tmp_path: Path, caplog: Any) -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, color_system=None, width=160)
    bar = ProgressBar(console=console, line_seconds=0.0)
    train(classifier_task(), tmp_path / "bar", images=32, extra=(bar,), minutes=5)
    said, places = " ".join(screen.getvalue().split()), []
    for word in ("preparing", "waiting for the first batch", "first update", "images/s", "saves in "):
        places.append(said.index(word))
    assert places == sorted(places)
    assert all(word in said for word in ("100%", "passed", "left", "validating"))
    with caplog.at_level("INFO", logger="varlab"):
        lines = ProgressBar(console=Console(file=io.StringIO()), line_seconds=0.0)
        train(classifier_task(), tmp_path / "lines", images=32, extra=(lines,))
    said = [record.getMessage() for record in caplog.records]
    first = next(i for i, line in enumerate(said) if "of 32 images" in line)
    assert "waiting for the first batch" in said[:first]


@pytest.mark.usefixtures("bfloat16")
def test_mixed_precision_keeps_float32_weights_and_close_losses(tmp_path: Path) -> None:
    exact = train(tokenizer_task(), tmp_path / "exact", images=16)
    mixed = train(tokenizer_task(), tmp_path / "mixed", images=16, precision="bf16-mixed")
    assert all(p.dtype == torch.float32 for p in mixed.model.parameters())
    assert not same_state(exact.model.state_dict(), mixed.model.state_dict())
    first, second = (next(line for line in _lines(tmp_path / d) if "train/loss" in line) for d in ("exact", "mixed"))
    assert second["train/loss"] == pytest.approx(first["train/loss"], rel=0.05)
