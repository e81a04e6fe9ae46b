"""``varlab sample``: what it leaves, and that sample i is sample i however many are asked for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import varlab
from tests import small
from varlab.cli.main import main
from varlab.recipe.networks import load_classifier
from varlab.types import to_float, to_uint8


def sample(run: Path, out: Path, *arguments: str) -> tuple[np.ndarray, np.ndarray]:
    assert main(["sample", str(run), f"out={out}", *arguments]) == 0
    with np.load(out / "samples.npz") as file:
        return file["arr_0"], file["arr_1"]


@pytest.mark.parametrize("name", ["next_scale", "raster"])
def test_sample_i_depends_on_seed_and_i_alone(name: str, lab: Path, tmp_path: Path) -> None:
    """Equal pixels before rounding to 1e-5: so at most a rounding apart."""
    eight, labels = sample(lab / name, tmp_path / "8", "n=8")
    assert eight.shape == (8, 16, 16, 3) and eight.dtype == np.uint8 and labels.tolist() == list(range(8))
    four, _ = sample(lab / name, tmp_path / "4", "n=4")
    threes, _ = sample(lab / name, tmp_path / "batch", "n=8", "batch=3")
    other, _ = sample(lab / name, tmp_path / "seed", "n=8", "seed=1")
    for same in (four, threes):
        assert np.abs(same.astype(int) - eight[: len(same)]).max() <= 1
    assert all((a != b).any() for a, b in zip(other, eight, strict=True))


def test_labels_are_balanced_or_those_asked_for(lab: Path, tmp_path: Path) -> None:
    _, labels = sample(lab / "raster", tmp_path / "all", "n=20", "batch=7")
    assert np.bincount(labels).tolist() == [2] * 10
    _, labels = sample(lab / "raster", tmp_path / "two", "n=5", "labels=[7,2]")
    assert labels.tolist() == [7, 2, 7, 2, 7]
    _, labels = sample(lab / "raster", tmp_path / "named", "n=3", "labels=[7,'2']")
    assert labels.tolist() == [7, 2, 7]


def test_the_command_and_the_python_door_agree(lab: Path, tmp_path: Path) -> None:
    img, labels = sample(lab / "raster", tmp_path / "out", "n=6", "seed=5", "cfg=2", "top_k=12", "weights=raw")
    model = varlab.load(lab / "raster", weights="raw")
    same = to_uint8(model.sample(labels.tolist(), seed=5, cfg=2.0, top_k=12)).permute(0, 2, 3, 1).numpy()
    assert np.abs(same.astype(int) - img).max() <= 1


def test_pictures_and_record(lab: Path, tmp_path: Path) -> None:
    sample(lab / "next_scale", tmp_path / "out", "n=20", "sampler=var", "top_k=10", "grown=3")
    with Image.open(tmp_path / "out" / "pictures" / "samples.png") as grid:
        assert grid.width == 6 * (10 * 17 - 1) and grid.height > 6 * (2 * 17 - 1)  # enlarged, below the classes' names
    with Image.open(tmp_path / "out" / "pictures" / "growth.png") as strip:
        assert strip.size == (8 * (4 * 17 - 1), 8 * (3 * 17 - 1))  # steps, samples
    outcome = small.record(tmp_path / "out")["outcome"]
    assert outcome["n"] == 20 and outcome["state"] == "finished"
    drawn = {"cfg": 1.5, "ramp": "linear", "temperature": 1.0, "top_k": 10, "top_p": 0.96}
    assert outcome["sampler"] == drawn | {"cfg_steps": None, "smooth": False}


def test_rejection_keeps_the_best_of_each_samples_candidates(lab: Path, tmp_path: Path) -> None:
    """By the judge's probability of the sample's label; the kept candidate is one that was drawn."""
    run = str(lab / "next_scale")
    with small.inside(lab.parent):
        assert main(["sample", run, "n=6", "reject=0.25", f"out={tmp_path / 'kept'}"]) == 0
        labels = ",".join(str(i // 4) for i in range(24))
        assert main(["sample", run, "n=24", f"labels=[{labels}]", f"out={tmp_path / 'all'}"]) == 0
    kept, drawn = (np.load(tmp_path / name / "samples.npz") for name in ("kept", "all"))
    candidates = drawn["arr_0"].reshape(6, 4, *drawn["arr_0"].shape[1:])
    judge = load_classifier(lab / "judge")
    for i, label in enumerate(kept["arr_1"]):
        images = torch.from_numpy(candidates[i]).permute(0, 3, 1, 2)
        probability = judge(to_float(images)).log_softmax(-1)[:, int(label)]
        assert (kept["arr_0"][i] == candidates[i][int(probability.argmax())]).all()


@pytest.mark.parametrize("rate", ["0", "2", "often"])
def test_a_rate_that_is_none_is_said(rate: str, lab: Path, tmp_path: Path, capsys) -> None:
    with small.inside(lab.parent):
        assert main(["sample", str(lab / "next_scale"), f"reject={rate}", f"out={tmp_path / 'x'}"]) == 1
    assert "acceptance rate" in capsys.readouterr().err


def test_the_next_command_scores_what_was_sampled(lab: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Also where a whole sampler was chosen, or other weights, and not what is the run's own anyway."""
    asked = ("sample", "runs/raster", "n=2", "batch=2", "shown=2", "grown=1")
    for words, told in (
        (("sampler=var", "weights=raw", "temperature=0.5"), "weights=raw cfg=1.5 temperature=0.5 top_k=900 top_p=0.96"),
        ((), ""),
    ):
        caplog.clear()
        assert main([*asked, *words, f"out={tmp_path / str(len(words))}"]) == 0
        (said,) = [line for line in caplog.messages if line.startswith("next: ")]
        assert said == " ".join(["next: varlab evaluate runs/raster", told]).strip()
