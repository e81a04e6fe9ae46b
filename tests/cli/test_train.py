"""``varlab train``: what a run directory holds, runs that are asked for again, several ranks."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from tests import small
from varlab.checkpoint import load_checkpoint, read_metadata
from varlab.cli.main import main
from varlab.files import sha256

GENERATOR = small.RUNS["next_scale"]


def files(run: Path) -> dict[str, tuple[int, int]]:
    """name → (size, time of the last change)."""
    return {
        str(path.relative_to(run)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in sorted(run.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


# -- the run directory -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", small.RUNS)
def test_a_finished_run_holds_what_it_promises(name: str, lab: Path) -> None:
    run, record = lab / name, small.record(lab / name)
    held = {path.name for path in run.iterdir()}
    assert held >= {
        "run.json",
        "metrics.jsonl",
        "weights.safetensors",
        "weights_raw.safetensors",
        "last.ckpt",
        "progress",
    }
    assert ("tokenizer.safetensors" in held) == (record["config"]["kind"] == "generator")
    assert ("tb" in held) == record["config"]["tensorboard"]
    assert set(record) >= {
        "command", "name", "overrides", "config", "code", "versions", "hardware", "seed", "data", "parents", "auto",
        "budget", "cost", "resumes", "outcome", "build", "command_line", "choices",
    }  # fmt: skip
    assert record["command"] == "train" and record["resumes"] == [] and record["seed"] == record["config"]["seed"]
    assert record["auto"] == {"precision": "32-true"} and record["versions"]["torch"] == torch.__version__
    assert record["code"]["version"] and record["hardware"]["cores"] and record["config"]["trainer"]["threads"] == 1
    assert f"data.batch={record['config']['data']['batch']}" in [*record["overrides"], "data.batch=64"]


@pytest.mark.parametrize("name", small.RUNS)
def test_data_and_budget_and_outcome_agree(name: str, lab: Path) -> None:
    record, index = small.record(lab / name), json.loads((lab / "data" / "source=digits" / "index.json").read_text())
    data, outcome = record["data"], record["outcome"]
    assert data["image_size"] == index["image_size"] == [16, 16] and data["classes"] == index["classes"]
    assert data["counts"] == {"train": 1438, "val": 359} and len(data["hash"]) == 64 and "digits" in data["source"]
    assert outcome["state"] == "finished" and outcome["error"] is None and outcome["seconds"] > 0
    assert outcome["images"] == record["budget"]["images"] == small.progress(lab / name)
    assert outcome["flops"] == record["budget"]["flops"] > 0 and record["cost"]["parameters"] > 0
    last = small.lines(lab / name)[-1]
    assert (last["images"], last["flops"]) == (outcome["images"], outcome["flops"])
    assert all(isinstance(v, int | float) for line in small.lines(lab / name) for v in line.values())


@pytest.mark.parametrize(("name", "parent"), [("next_scale", "multi"), ("raster", "single")])
def test_parents_are_named_with_their_weights(name: str, parent: str, lab: Path) -> None:
    stand = small.record(lab / name)["parents"]["tokenizer"]
    assert stand["run"] == f"runs/{parent}" and stand["weights_sha256"] == sha256(lab / parent / "weights.safetensors")
    assert sha256(lab / name / "tokenizer.safetensors") == stand["weights_sha256"]
    assert stand["config"] == small.record(lab / parent)["config"]["tokenizer"]
    perceptual = small.record(lab / parent)["parents"]["perceptual"]
    assert perceptual["weights_sha256"] == sha256(lab / "perceptual" / "weights.safetensors")


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("judge", "train/loss train/accuracy val/loss val/accuracy"),
        (
            "multi",
            "train/loss train/l1 train/l2 train/perceptual train/vq train/gan train/disc_loss train/lambda train/grad_rec "
            "train/grad_gan train/logits_real train/logits_fake train/usage/3 train/perplexity/3 train/revived train/lr "
            "train/grad_norm val/psnr val/l1 val/perceptual val/usage/3 val/perplexity/3",
        ),
        (
            "next_scale",
            "train/loss train/loss/3 train/loss/last train/accuracy train/accuracy/last train/lr train/grad_norm "
            "val/nll val/loss val/loss/3 val/loss/last val/accuracy val/accuracy/last",
        ),
    ],
)
def test_metrics_carry_their_names(name: str, keys: str, lab: Path) -> None:
    logged = {key for line in small.lines(lab / name) for key in line}
    assert logged >= {"images", "flops", *keys.split()}


def test_pictures_and_tensorboard(lab: Path) -> None:
    assert {path.name for path in (lab / "multi" / "pictures").iterdir()} == {"reconstructions.png"}
    assert {path.name for path in (lab / "raster" / "pictures").iterdir()} == {"samples.png", "real.png", "growth.png"}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(lab / "next_scale" / "tb")).Reload()
    assert [e.step for e in events.Scalars("train/loss")] == [64, 128, 192, 256]
    assert {"samples", "growth"} <= set(events.Tags()["images"])


def test_the_checkpoint_holds_tensors_and_plain_values(lab: Path) -> None:
    """Read without unpickling code; it knows the configuration it belongs to."""
    state = load_checkpoint(lab / "multi" / "last.ckpt")
    assert state["images"] == 256 and len(state["config_hash"]) == 64
    assert state["config_hash"] != load_checkpoint(lab / "single" / "last.ckpt")["config_hash"]
    assert set(state["modules"]) == {"model", "discriminator"} and "ema" in state
    assert read_metadata(lab / "multi" / "weights.safetensors") == {"images": "256"}
    raw = load_file(lab / "multi" / "weights_raw.safetensors")
    assert all(torch.equal(raw[name], tensor) for name, tensor in state["modules"]["model"].items())


# -- asked again -------------------------------------------------------------------------------------------------------


def test_a_finished_run_is_left_alone_and_says_so(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = files(lab / "next_scale")
    assert small.train("next_scale", *GENERATOR) == 0
    assert files(lab / "next_scale") == before
    assert capsys.readouterr().err.strip() == "runs/next_scale is finished: nothing to do"


def test_where_and_how_a_run_is_done_is_no_part_of_it(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another name or launcher is the same run; another setting is not."""
    before = files(lab / "raster")
    assert small.train("raster", *small.RUNS["raster"], "name=other") == 0
    before_clip = small.record(lab / "raster")["config"]["task"]["clip"]
    assert small.train("raster", *small.RUNS["raster"], "task.clip=1.25") == 1
    said = capsys.readouterr().err.splitlines()
    assert said[0] == "runs/raster is finished: nothing to do" and len(said) == 2
    assert said[1].startswith(
        f"varlab train: runs/raster holds a run of another configuration: task.clip: {before_clip} → 1.25. Use another out="
    )
    assert files(lab / "raster") == before


@pytest.mark.slow
def test_a_run_keeps_to_what_it_found_at_first(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """``auto`` is decided once: a better fitting run that appears in between has no say in the rest of a training."""
    from varlab.tasks import Task
    from varlab.types import VarlabError

    plain = Task.training_step

    def fails(task: Task, batch, batch_idx: int) -> object:
        if task.images >= 64:
            raise VarlabError("Stop.")
        return plain(task, batch, batch_idx)

    run, arguments = tmp_path / "run", (*small.RUNS["multi"], "budget.images=128", "checkpoint.every=64")
    monkeypatch.setattr(Task, "training_step", fails)
    assert small.train(run, *arguments) == 1
    monkeypatch.undo()
    with small.inside(lab.parent):
        assert small.record(run)["parents"]["perceptual"]["run"] == "runs/perceptual"
        nearer = tmp_path / "nearer"
        assert small.train(nearer, *small.RUNS["perceptual"], "seed=5", "budget.images=64") == 0
        assert small.train(run, *arguments) == 0
        assert small.record(run)["parents"]["perceptual"]["run"] == "runs/perceptual"
        assert small.train(tmp_path / "after", *arguments) == 0
        assert small.record(tmp_path / "after")["parents"]["perceptual"]["run"].endswith("nearer")


def test_precision_is_decided_once(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = [*small.RUNS["judge"], "trainer.precision=auto", "budget.images=64"]
    assert small.train(tmp_path / "run", *arguments) == 0
    assert small.record(tmp_path / "run")["auto"]["precision"] in ("32-true", "bf16-mixed")


def test_multirun_makes_a_directory_a_job(lab: Path, tmp_path: Path) -> None:
    arguments = [*small.RUNS["judge"], "budget.images=64", f"out={tmp_path}"]
    asked = [argument for argument in arguments if not argument.startswith("seed=")]
    assert main(["train", "-m", *asked, "seed=4,5"]) == 0
    runs = sorted(path for path in tmp_path.iterdir() if path.is_dir() and not path.name.startswith("."))
    assert [small.record(run)["seed"] for run in runs] == [4, 5] and small.weights(runs[0]) != small.weights(runs[1])


def test_in_training_scores(lab: Path, tmp_path: Path) -> None:
    """FID and Inception score of samples on the clock of images, and at the end; no bit of the training depends on them."""
    more = ("scores.every=128", "scores.count=20", "metrics.splits=2", "metrics.draws=2", "tensorboard=false")
    assert small.train(tmp_path / "run", *GENERATOR, *more, "checkpoint.best=fid") == 0
    assert small.weights(tmp_path / "run") == small.weights(lab / "next_scale")
    scored = [line for line in small.lines(tmp_path / "run") if "val/fid" in line]
    assert [line["images"] for line in scored] == [128, 256] and scored[0]["flops"] * 2 == scored[1]["flops"] > 0
    assert 0 <= scored[0]["val/judged_accuracy"] <= 1 and "val/accuracy" not in scored[0]
    kept = read_metadata(tmp_path / "run" / "weights_best.safetensors")
    best = min(scored, key=lambda line: line["val/fid"])
    assert kept == {"score": "fid", "value": repr(best["val/fid"]), "images": str(best["images"])}
    assert len(small.curve(tmp_path / "run", "val/fid")) == 2 and small.curve(tmp_path / "run", "val/inception_score")
    assert small.record(tmp_path / "run")["parents"]["judge"]["run"] == "runs/judge"


def test_the_best_weights_are_sampled_and_scored(lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The value that the training logged is that of the kept weights."""
    run = tmp_path / "run"
    assert small.train(run, *small.RUNS["raster"], "val.every=64", "checkpoint.best=nll", "task.schedule.end=50") == 0
    curve = {line["val/nll"]: line["images"] for line in small.lines(run) if "val/nll" in line}
    kept = read_metadata(run / "weights_best.safetensors")
    assert (float(kept["value"]), int(kept["images"])) == (min(curve), curve[min(curve)]) and len(curve) == 4
    asked = (str(run), "weights=best", f"out={tmp_path / 'out'}")
    assert main(["evaluate", *asked, "n=20", "metrics.splits=2", "metrics.draws=2"]) == 0
    outcome = small.record(tmp_path / "out")["outcome"]
    assert outcome["scores"]["val_nll"] == pytest.approx(min(curve), rel=1e-5)
    protocol = outcome["protocol"]
    assert protocol["kept"] == kept and protocol["weights_sha256"] == sha256(run / "weights_best.safetensors")
    assert main(["sample", *asked[:2], "n=2", "grown=1", f"out={tmp_path / 'samples'}"]) == 0
    assert main(["sample", "runs/raster", "weights=best", f"out={tmp_path / 'none'}"]) == 1
    assert "kept no best weights" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("asked", "sentence"),
    [
        ("checkpoint.best=fid", "needs scores during the training: set scores.every=16384"),
        ("checkpoint.best=mine", "checkpoint.best=mine is not known: use one of accuracy, "),
        ("checkpoint.best={mine:best}", "as in checkpoint.best={mine:max}"),
        ("checkpoint.best=nll val.skip=true", "needs validation: set val.skip=false"),
    ],
)
def test_a_score_that_a_training_does_not_have_is_refused(
    asked: str, sentence: str, lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert small.train(tmp_path / "run", *small.RUNS["raster"], *asked.split()) == 1
    assert sentence in capsys.readouterr().err and not (tmp_path / "run").exists()


# -- ranks -------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["next_scale", "multi"])
def test_two_ranks_train_as_one(name: str, lab: Path, tmp_path: Path) -> None:
    """The same losses up to rounding, the same codes used. Revival draws from candidates that are ranks' own: left out.

    The steps are small: Adam's first ones have the size of the learning rate wherever rounding decides the sign.
    """
    asked = [*small.RUNS[name], "budget.images=160", "log.every=32", "tensorboard=false", "task.optimizer.lr=1e-5"]
    if name == "multi":
        asked += ["loss.gan.start=0", "task.disc_optimizer.lr=1e-5", "task.revival=null"]
    two = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true")
    assert small.train(tmp_path / "one", *asked) == 0
    assert small.train(tmp_path / "two", *asked, *two) == 0
    one, other = small.lines(tmp_path / "one"), small.lines(tmp_path / "two")
    assert len(one) == len(other) == 6 and small.record(tmp_path / "two")["outcome"]["images"] == 160
    assert other[0] == pytest.approx(one[0], rel=1e-5, abs=1e-6)
    for a, b in zip(one, other, strict=True):
        assert {k: a[k] for k in a if "/usage/" in k} == {k: b[k] for k in b if "/usage/" in k}
        assert b == pytest.approx(a, rel=1e-3, abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["raster", "multi"])
def test_two_ranks_score_during_training_as_an_evaluation_does(name: str, lab: Path, tmp_path: Path) -> None:
    """Of the same weights on one rank; with shares of uneven size."""
    run, few = tmp_path / "run", ("metrics.splits=2", "metrics.draws=2") if name == "raster" else ()
    asked = (*small.RUNS[name], "budget.images=64", "scores.every=64", "scores.count=44", "data.eval_batch=40", *few)
    two = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.precision=32-true")
    assert small.train(run, *asked, *two, "checkpoint.best=fid" if few else "checkpoint.best=rfid") == 0
    assert main(["evaluate", str(run), f"out={tmp_path / 'out'}", "n=44", "batch=40", "device=cpu", *few]) == 0
    scores = small.record(tmp_path / "out")["outcome"]["scores"]
    for score in ("fid", "precision", "inception_score") if few else ("rfid", "psnr"):
        assert small.curve(run, f"val/{score}")[-1] == pytest.approx(scores[score], rel=1e-4), score
    assert small.weights(run)[0] != small.weights(run)[1] and (run / "weights_best.safetensors").is_file()


@pytest.mark.parametrize(
    ("name", "score", "following"),
    [("single", "held-out PSNR", "task=generator tokenizer_run="), ("raster", "held-out loss", "varlab sample ")],
)
def test_the_end_says_what_came_of_it(
    name: str, score: str, following: str, lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The score beside that of a guess, the pictures, and the next command."""
    assert small.train(tmp_path / "run", *small.RUNS[name], "budget.images=32", "pictures.count=2") == 0
    said = capsys.readouterr().err
    assert re.search(rf"{score} [\d.]+ .*\((one colour|a guess).*: [\d.]+", said)
    assert f"look at {tmp_path / 'run' / 'pictures'}" in said
    assert "next: varlab" in said and following in said


def test_pictures_of_a_training_are_enlarged_below_the_names_of_their_columns(lab: Path) -> None:
    """Ten columns of 16 pixels, one apart, six times as large; each pixel is a square of one colour."""
    with Image.open(lab / "raster" / "pictures" / "samples.png") as picture:
        img_HW3 = np.asarray(picture)
    assert img_HW3.shape[1] == 6 * (10 * 17 - 1) and img_HW3.shape[0] > 6 * 16
    names, samples = np.split(img_HW3, [img_HW3.shape[0] - 6 * 16])
    blocks = samples.reshape(16, 6, 169, 6, 3)
    assert (blocks == blocks[:, :1, :, :1]).all() and (names < 128).any()
