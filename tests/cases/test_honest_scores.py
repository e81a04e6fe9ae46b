"""Scores that could mislead say so (row 32 of the public reports, and its kind): weak judges, leakage, noise in a ratio."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binomtest

from tests import small
from varlab.cli.main import main
from varlab.data.format.duplicates import find_duplicates
from varlab.data.format.index import read_index
from varlab.metrics.comparison import matched_draws, nearest_distance, nearest_scores
from varlab.metrics.held_out_accuracy import HeldOutAccuracy
from varlab.recipe.networks import held_out_accuracy
from varlab.rng import Rng

DATA = ("data=folder", "data.path=runs/data/X", "data.workers=0", "data.batch=16", "val.every=null", *small.FAST)
JUDGE = ("task=classifier", *DATA, "classifier.channels=[8,16]", "classifier.groups=4")
TOKENIZER = (*small.TOKENIZER, *DATA, "tokenizer.scales=[[1,1],[4,4]]", "budget.images=32", "perceptual=none")


def picture(seed: int, tone: int, size: int = 16) -> Image.Image:
    noise = np.random.default_rng(seed).integers(0, 60, (size, size, 3))
    return Image.fromarray((noise + tone).astype(np.uint8))


def fill(folder: str, classes: dict[str, int], *, first: int = 0) -> None:
    """Images of noise; the classes differ in tone."""
    for tone, (name, n) in enumerate(classes.items()):
        Path(folder, name).mkdir(parents=True, exist_ok=True)
        for i in range(first, first + n):
            picture(1000 * tone + i, 20 + 120 * tone).save(Path(folder, name, f"{i:03d}.png"))


def pack(*arguments: str, path: str = "X", out: str = "runs/data/X") -> int:
    return main(["pack", "source=folder", f"path={path}", "source.size=16", f"out={out}", "workers=0", *arguments])


def outcome(run: str | Path) -> dict[str, Any]:
    values: dict[str, Any] = small.record(Path(run))["outcome"]
    return values


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Path]:
    with small.inside(tmp_path):
        yield tmp_path


@pytest.fixture(scope="module")
def leaky(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same images in train and val (row 32), a judge that learned nothing, and a generator; all scored and reported."""
    folder = tmp_path_factory.mktemp("leaky")
    with small.inside(folder):
        for split in ("train", "val"):
            fill(f"X/{split}", {"a": 16, "b": 16})
        assert pack() == 0
        assert small.train("judge", *JUDGE, "budget.images=16", "task.optimizer.lr=0") == 0
        assert small.train("tokenizer", *TOKENIZER) == 0
        assert small.train("generator", *small.GENERATOR, *DATA, "budget.images=32") == 0
        few = ("n=64", "metrics.draws=2", "metrics.splits=2", "threads=null")
        assert main(["evaluate", "runs/generator", "out=runs/scores/generator", *few]) == 0
        assert main(["evaluate", "runs/tokenizer", "out=runs/scores/tokenizer", "threads=null"]) == 0
        assert main(["report", "runs", "out=page"]) == 0
        yield folder


def score(run: str) -> dict[str, Any]:
    (file,) = Path("runs", run, "scores").glob("*.json")
    content: dict[str, Any] = json.loads(file.read_text())
    return content


# -- judges --------------------------------------------------------------------------------------------------------------


def test_a_judge_says_its_accuracy_beside_the_majoritys(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill("X", {"a": 40, "b": 40, "c": 40})
    assert pack("source.val_fraction=0.25") == 0
    with caplog.at_level(logging.INFO, "varlab"):
        assert small.train("judge", *JUDGE, "budget.images=480", "task.ema_decay=0.9") == 0
    held_out = outcome("runs/judge")["held_out"]
    assert held_out["accuracy"] > 0.6 and held_out["majority"] == pytest.approx(1 / 3) and held_out["images"] == 30
    assert held_out["summary"] in caplog.text and "warning" not in held_out


def test_a_judge_of_99_to_1_is_not_better_than_the_majority(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is right for 99% of held-out images, and knows nothing: the warning says both numbers."""
    fill("X", {"common": 99, "rare": 2})
    assert pack("source.val_fraction=0.5") == 0
    with caplog.at_level(logging.WARNING, "varlab"):
        assert small.train("judge", *JUDGE, "budget.images=16", "task.optimizer.lr=0") == 0
    held_out = outcome("runs/judge")["held_out"]
    assert held_out["majority"] == pytest.approx(50 / 51, abs=0.01)
    assert (
        "no better than majority class on held-out images" in held_out["warning"] and held_out["warning"] in caplog.text
    )


def test_a_judge_that_learned_nothing_says_so_everywhere(leaky: Path) -> None:
    warning = outcome("runs/judge")["held_out"]["warning"]
    assert "predicts labels is no better than majority class" in warning
    for run in ("generator", "tokenizer"):
        assert score(run)["protocol"]["judge"]["warning"] == warning
    page = Path("page/report.html").read_text()
    assert warning.rstrip(".") in page and "runs/judge" in page


@given(st.integers(1, 400), st.floats(0, 1), st.floats(0.01, 1))
def test_learned_is_a_binomial_test(n: int, share: float, majority: float) -> None:
    right = round(share * n)
    found = HeldOutAccuracy(accuracy=right / n, majority=majority, images=n)
    assert found.learned == (binomtest(right, n, majority, alternative="greater").pvalue < 0.05)
    assert bool(found.warning) != found.learned
    assert HeldOutAccuracy.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_a_judge_without_recorded_accuracy_loads_and_says_so(leaky: Path, tmp_path: Path) -> None:
    """As earlier versions left them; one of one class is known to have learned nothing."""
    shutil.copytree("runs/judge", tmp_path / "old")
    record = small.record(tmp_path / "old")
    del record["outcome"]["held_out"], record["build"]["predicts"]
    (tmp_path / "old" / "run.json").write_text(json.dumps(record))
    assert held_out_accuracy(tmp_path / "old").learned is None
    assert main(["evaluate", "runs/tokenizer", f"extractor.run={tmp_path / 'old'}", f"out={tmp_path / 'out'}"]) == 0
    file = Path(small.record(tmp_path / "out")["outcome"]["scores_file"])
    judge = json.loads(file.read_text())["protocol"]["judge"]
    assert judge["summary"].endswith("its held-out accuracy was not recorded") and "warning" not in judge
    record["build"]["classifier"]["num_classes"] = 1
    (tmp_path / "old" / "run.json").write_text(json.dumps(record))
    assert held_out_accuracy(tmp_path / "old").learned is False


# -- leakage -------------------------------------------------------------------------------------------------------------


def test_row32_leakage_is_named_when_packing_training_scoring_and_reporting(leaky: Path) -> None:
    index = read_index("runs/data/X")
    found = find_duplicates(index)
    assert (found.leaked, found.val, found.repeated) == (32, 32, {"train": 0, "val": 0})
    assert found.leakage.startswith("32 of 32 val images are train images, too (0000") and found.leakage.endswith(
        ", …)"
    )
    assert outcome("runs/data/X")["summary"]["duplicates"]["leaked"] == 32
    assert "32 of 32 val images" in Path("runs/data/X/summary.html").read_text()
    assert small.record(Path("runs/generator"))["data"]["leakage"] == found.leakage
    for run in ("generator", "tokenizer"):
        assert score(run)["protocol"]["leakage"] == found.leakage
    assert "32 of 32 val images are train images, too" in Path("page/report.html").read_text()


def test_row32_there_is_no_ratio_to_images_that_were_trained_on(leaky: Path) -> None:
    scores = score("generator")["scores"]
    assert not {"fid_ratio", "nn_ratio"} & set(scores) and {"fid", "fid_draws", "fid_val"} <= set(scores)


def test_leakage_is_named_when_indexing(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Some of the images are in both splits, one is twice in train; the index of an earlier version says it, too."""
    fill("X/train", {"a": 10, "b": 10})
    fill("X/val", {"a": 4, "b": 4}, first=7)
    shutil.copy("X/train/a/000.png", "X/train/a/copy.png")
    assert pack() == 0
    before = Path("runs/data/X/index.json").read_text()
    for name in ("index.json", "train.samples.npy", "val.samples.npy"):
        Path("runs/data/X", name).unlink()
    with caplog.at_level(logging.WARNING, "varlab"):
        assert main(["index", "runs/data/X", "workers=0"]) == 0
    assert "6 of 8 val images are train images, too (" in caplog.text
    assert "1 train images repeat another one of train" in caplog.text
    assert json.loads(before)["tables"] == json.loads(Path("runs/data/X/index.json").read_text())["tables"]
    found = find_duplicates(read_index("runs/data/X"))
    keys = {key.split("-")[1] for key in found.keys}
    assert found.leaked == 6 and keys <= {"007", "008", "009"}


def test_sets_without_duplicates_say_nothing(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    fill("X", {"a": 10, "b": 10})
    with caplog.at_level(logging.WARNING, "varlab"):
        assert pack() == 0 and pack("source.val_fraction=0", out="Y") == 0
    assert not caplog.text and "duplicates" not in outcome("runs/data/X")["summary"]
    assert "<dt>duplicates</dt>" not in Path("Y/summary.html").read_text()


# -- ratios --------------------------------------------------------------------------------------------------------------


def normal(name: str, n: int, dim: int, *, seed: int, classes: int = 1, apart: float = 0.0) -> torch.Tensor:
    """Points around one centre for each class, in turn."""
    centre_KF = Rng(0).stream("centres", torch.arange(classes)).normal(dim) * apart
    return Rng(seed).stream(name, torch.arange(n)).normal(dim) + centre_KF[torch.arange(n) % classes]


def nearest(fake: torch.Tensor, train: torch.Tensor, val: torch.Tensor) -> dict[str, float]:
    return nearest_scores(*(nearest_distance(x, train) for x in (fake, val)), train)


@settings(max_examples=10)
@given(
    st.integers(8, 24),
    st.sampled_from([1, 2, 5, 10]),
    st.integers(1, 6),
    st.sampled_from([0.0, 5.0, 50.0]),
    st.integers(0, 99),
)
def test_ordinary_images_keep_their_ratio(dim: int, classes: int, each: int, apart: float, seed: int) -> None:
    """However few, in however many classes, however far apart: to the last digit the quotient."""
    n = max(classes * each, 8 * classes if classes == 1 else 2 * classes)
    train = normal("train", 9 * n, dim, seed=seed, classes=classes, apart=apart)
    val, fake = (normal(name, n, dim, seed=seed, classes=classes, apart=apart) for name in ("val", "fake"))
    label = torch.arange(n) % classes
    values = matched_draws(fake, label, train, val, label, draws=2, rng=Rng(seed))
    assert values["fid_ratio"] == values["fid_draws"] / values["fid_val"]
    assert "nn_ratio" in nearest(fake, train, val)


@settings(max_examples=10)
@given(st.integers(1, 24), st.sampled_from([1, 2, 5]), st.integers(2, 30), st.floats(1e-3, 1e3), st.integers(0, 99))
def test_row32_training_images_give_no_ratio(dim: int, classes: int, each: int, scale: float, seed: int) -> None:
    """Also with the rounding of features that were computed in other batches."""
    n = max(classes * each, 8)
    train = normal("train", n, dim, seed=seed, classes=classes, apart=5) * scale
    rounded = train * (1 + 1e-7 * normal("rounding", n, dim, seed=seed))
    fake, label = normal("fake", n, dim, seed=seed) * scale, torch.arange(n) % classes
    for val in (train, train.flip(0), rounded):
        labels = label.flip(0) if val is not train and val is not rounded else label
        assert "fid_ratio" not in matched_draws(fake, label, train, val, labels, draws=2, rng=Rng(seed))
        assert "nn_ratio" not in nearest(fake, train, val)


def test_a_ratio_depends_on_no_order() -> None:
    train, val = normal("train", 200, 8, seed=1), normal("val", 40, 8, seed=1)
    fake, label = normal("fake", 40, 8, seed=1), torch.arange(40) % 2
    order = Rng(3).stream("order").permutation(40)[0]
    first = matched_draws(fake, label, train, val, label, draws=2, rng=Rng(0))
    again = matched_draws(fake[order], label[order], train, val[order], label[order], draws=2, rng=Rng(0))
    assert again == pytest.approx(first, rel=1e-9) and first.keys() == again.keys() and "fid_ratio" in first


# -- labels of imported models -------------------------------------------------------------------------------------------


def test_row4_class_names_that_are_unknown_are_said_to_be(leaky: Path, tmp_path: Path) -> None:
    """A run whose classes are numbers is compared by number, and its protocol says that nobody checked the names."""
    shutil.copytree("runs/generator", tmp_path / "imported")
    record = small.record(tmp_path / "imported")
    record["build"]["classes"] = ["0", "1"]
    (tmp_path / "imported" / "run.json").write_text(json.dumps(record))
    shutil.rmtree(tmp_path / "imported" / "scores")
    few = ("n=16", "metrics.draws=2", "metrics.splits=2", "extractor.run=runs/judge", f"out={tmp_path / 'out'}")
    assert main(["evaluate", str(tmp_path / "imported"), *few]) == 0
    (file,) = (tmp_path / "imported" / "scores").iterdir()
    assert json.loads(file.read_text())["protocol"]["classes"].startswith("class names unknown")
    assert "classes" not in score("generator")["protocol"]
