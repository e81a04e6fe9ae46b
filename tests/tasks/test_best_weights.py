"""The averaged weights at the best value of a score stay, whatever stops the training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tiny_tasks import Kill, Killed, classifier_task, same_state, train

from varlab.checkpoint import read_metadata
from varlab.tasks import Task
from varlab.tasks.callbacks import InTrainingScores

BEST = "weights_best.safetensors"


def scored(
    directory: Path, *, best: tuple[str, str] = ("fid", "min"), kill: int | None = None, every: int = 16
) -> Task:
    """A training of 64 images whose FID is lowest after 32, and whose precision is highest after 48."""
    task = classifier_task()

    class Noted(InTrainingScores):
        def act(self, trainer: Any, task: Any) -> None:
            super().act(trainer, task)
            averages[task.images] = {name: value.clone() for name, value in task.ema.weights(task.model).items()}

    averages: dict[int, Any] = {}
    values = {"fid": lambda: float(abs(task.images - 32)), "precision": lambda: -float(abs(task.images - 48))}
    scores = Noted(scores=lambda: {name: value() for name, value in values.items()}, every=16)
    extra = (scores, Kill(kill)) if kill else (scores,)
    try:
        train(task, directory, images=64, every=every, extra=extra, best=best)
    finally:
        task.averages = averages
    return task


@pytest.mark.parametrize(("best", "at"), [(("fid", "min"), 32), (("precision", "max"), 48)])
def test_the_best_weights_are_the_averages_of_that_update(best: tuple[str, str], at: int, tmp_path: Path) -> None:
    task = scored(tmp_path, best=best)
    assert same_state(load_file(tmp_path / BEST), task.averages[at])
    assert read_metadata(tmp_path / BEST) == {
        "images": str(at),
        "score": best[0],
        "value": "0.0" if at == 32 else "-0.0",
    }
    assert not same_state(load_file(tmp_path / BEST), load_file(tmp_path / "weights.safetensors"))


@pytest.mark.parametrize("every", [16, 1000])
@pytest.mark.parametrize("moment", [32, 40, 64])
def test_a_killed_training_keeps_the_same_best_weights(every: int, moment: int, tmp_path: Path) -> None:
    """Those from before the last checkpoint, and those that the resumed training makes again."""
    scored(tmp_path / "whole")
    with pytest.raises(Killed):
        scored(tmp_path / "killed", kill=moment, every=every)
    scored(tmp_path / "killed", every=every)
    whole, killed = ((tmp_path / name / BEST).read_bytes() for name in ("whole", "killed"))
    assert whole == killed


def test_a_score_that_is_never_logged_is_said_at_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    scored(tmp_path, best=("nothing", "min"))
    assert "no val/nothing was logged" in caplog.text and not (tmp_path / BEST).exists()
