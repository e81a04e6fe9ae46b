"""The real commands on a GPU: training with workers, and the scores of a run."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from torch.utils.data import dataloader

from tests import small
from tests.cli.test_evaluate import FEW, evaluate
from tests.gpu.conftest import DEVICE, Row
from varlab.cli.main import main

pytestmark = pytest.mark.gpu

GPU = ("trainer=gpu",) if DEVICE == "cuda" else ("trainer=gpu", "trainer.accelerator=cpu")
MIXED = tuple(word for word in small.RUNS["next_scale"] if not word.startswith("trainer.precision"))


def test_a_training_with_pictures_and_scores(lab: Path, tmp_path: Path, row: Row) -> None:
    """``varlab train trainer=gpu``, in bf16-mixed: nearly the CPU's likelihood; asked for again, nothing is left to do."""
    asked = (*MIXED, *GPU, "val.every=128", "log.every=32")
    assert small.train(tmp_path / "run", *asked) == 0
    record, lines = small.record(tmp_path / "run"), small.lines(tmp_path / "run")
    assert record["auto"]["precision"] == "bf16-mixed" and record["outcome"]["images"] == 256
    if DEVICE == "cuda":
        assert record["hardware"]["gpus"] == [torch.cuda.get_device_name()]
    assert (tmp_path / "run" / "pictures" / "samples.png").exists()
    cpu, gpu = (small.curve(run, "val/nll")[-1] for run in (lab / "next_scale", tmp_path / "run"))
    row("varlab train trainer=gpu: val/nll", cpu, gpu, abs(cpu - gpu), 0.02 * cpu)
    assert abs(cpu - gpu) <= 0.02 * cpu
    assert small.train(tmp_path / "run", *asked) == 0 and small.lines(tmp_path / "run") == lines


def test_scores_during_a_training(lab: Path, tmp_path: Path, row: Row) -> None:
    """Samples, features and FID of a training in float32, there and here; few tokens change where roundings decide."""
    asked = (*small.RUNS["next_scale"], "scores.every=128", "scores.count=200", "trainer.precision=32-true")
    for name, trainer in (("cpu", ()), ("gpu", GPU)):
        assert small.train(tmp_path / name, *trainer, *asked) == 0
    for key in ("val/fid", "val/inception_score", "val/nll"):
        cpu, gpu = (small.curve(tmp_path / name, key) for name in ("cpu", "gpu"))
        off = max(abs(a - b) for a, b in zip(cpu, gpu, strict=True))
        row(f"scores during a training: {key}", cpu[-1], gpu[-1], off, 0.02 * abs(cpu[-1]))
        assert off <= 0.02 * abs(cpu[-1])


@pytest.mark.parametrize("kind", ["classifier", "tokenizer"])
def test_other_trainings(kind: str, lab: Path, tmp_path: Path, row: Row) -> None:
    name = {"classifier": "judge", "tokenizer": "multi"}[kind]
    words = [word for word in small.RUNS[name] if not word.startswith("trainer.precision")]
    assert small.train(tmp_path / "run", *words, *GPU) == 0
    key = {"classifier": "val/loss", "tokenizer": "val/l1"}[kind]
    cpu, gpu = (small.curve(run, key)[-1] for run in (lab / name, tmp_path / "run"))
    row(f"varlab train task={kind} trainer=gpu: {key}", cpu, gpu, abs(cpu - gpu), 0.1 * cpu)
    assert abs(cpu - gpu) <= 0.1 * cpu


def test_workers_read_the_same_images(lab: Path, tmp_path: Path, row: Row, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, started = (*small.RUNS["next_scale"], *GPU, "data.cache_bytes=0", "log.every=32"), []
    make = dataloader._MultiProcessingDataLoaderIter.__init__

    def noted(self: object, loader: dataloader.DataLoader) -> None:
        started.append(loader.num_workers)
        make(self, loader)  # type: ignore[arg-type]

    assert small.train(tmp_path / "none", *asked, "data.workers=0") == 0
    monkeypatch.setattr(dataloader._MultiProcessingDataLoaderIter, "__init__", noted)
    assert small.train(tmp_path / "two", *asked, "data.workers=2") == 0
    none, two = (small.curve(tmp_path / run, "train/loss") for run in ("none", "two"))
    off = max(abs(a - b) for a, b in zip(none, two, strict=True))
    row("varlab train trainer=gpu data.workers=2: train/loss", none[-1], two[-1], off, 1e-4)
    assert 2 in started and off <= 1e-4


@pytest.mark.parametrize(
    ("name", "keys"), [("multi", ("rfid", "psnr")), ("next_scale", ("fid", "nn_ratio", "val_nll"))]
)
def test_scores_are_those_of_the_cpu(name: str, keys: tuple[str, ...], lab: Path, tmp_path: Path, row: Row) -> None:
    """The same images through the same extractor; a token of a generator may change where roundings decide."""
    scores = []
    for device in ("cpu", DEVICE):
        run = tmp_path / device / "run" if not scores else tmp_path / "again" / "run"
        shutil.copytree(lab / name, run, ignore=shutil.ignore_patterns("scores"))
        scores.append(evaluate(run, run.parent / "out", *FEW, f"device={device}")["scores"])
    cpu, gpu = scores
    for key in keys:
        row(f"varlab evaluate {name}: {key}", cpu[key], gpu[key], abs(cpu[key] - gpu[key]), 1e-3 * abs(cpu[key]))
    assert {key: gpu[key] for key in keys} == pytest.approx({key: cpu[key] for key in keys}, rel=1e-3)


def test_sampling_and_editing_run(lab: Path, tmp_path: Path, row: Row) -> None:
    assert main(["sample", str(lab / "next_scale"), f"out={tmp_path / 'samples'}", "n=16", f"device={DEVICE}"]) == 0
    image = tmp_path / "samples" / "pictures" / "samples.png"
    asked = [f"image={image}", "box=[0,0,0.5,0.5]", f"out={tmp_path / 'edit'}", f"device={DEVICE}"]
    assert main(["edit", str(lab / "next_scale"), *asked]) == 0
    row("varlab sample and varlab edit on the device")
    assert list((tmp_path / "edit").rglob("*.png"))
