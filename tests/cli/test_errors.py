"""Bad input: one sentence on standard error, an exit code, no traceback, nothing half written."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests import small
from varlab.cli.main import main
from varlab.tasks import GeneratorTask, Task
from varlab.types import VarlabError

Refused = Callable[..., str]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """``refused("train", …)`` → the sentence, the one and last line that is not a log line."""

    def call(command: str, *arguments: str) -> str:
        capsys.readouterr()
        assert main([command, *arguments]) == 1
        said = capsys.readouterr().err
        assert "Traceback" not in said and "unexpected" not in said, said
        sentences = [line for line in said.splitlines() if line.startswith("varlab")]
        assert len(sentences) == 1 and said.splitlines()[-1] == sentences[0], said
        assert sentences[0].startswith(f"varlab {command}: ")
        return sentences[0].removeprefix(f"varlab {command}: ")

    return call


def half_written(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.name.endswith((".tmp", ".partial"))]


def no_weights(run: Path) -> bool:
    return not any(run.rglob("*.safetensors")) and not any(run.rglob("*.ckpt")) and not half_written(run)


# -- what is asked for does not fit ------------------------------------------------------------------------------------

JUDGE = [*small.RUNS["judge"], "budget.images=64"]
MULTI = [*small.RUNS["multi"], "budget.images=64"]
GENERATOR = [*small.RUNS["raster"], "budget.images=64"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([*JUDGE, "data.path=nowhere"], "There is no shard folder nowhere: pack one with `varlab pack`"),
        ([*JUDGE, "data.batch=0"], "data.batch is 0, but must be at least 1"),
        ([*JUDGE, "data.batch=many"], "data.batch is 'many', but must be a number, at least 1"),
        ([*JUDGE, "budget.images=null"], "one of budget.images=N, budget.flops=F and budget.seconds=S"),
        ([*JUDGE, "budget.flops=1e9"], "only one of budget.images, budget.flops, budget.seconds can be given"),
        ([*JUDGE, "budget.images=0"], "budget.images is 0"),
        ([*JUDGE, "classifier.groups=7"], "groups=7 does not divide"),
        ([*JUDGE, "trainer.devices=two"], "trainer.devices=two is neither a number"),
        ([*MULTI, "tokenizer.scales=[[1,1],[2,2]]"], "8×8 pixels, but runs/data/source=digits holds 16×16"),
        ([*MULTI, "perceptual.run=runs/multi"], "runs/multi is not the run of a classifier"),
        ([*MULTI, "perceptual.run=runs/none"], "runs/none is not a run directory"),
        ([*MULTI, "discriminator.norm=batch", "trainer.micro_batch=8"], "discriminator.norm=group"),
        (
            [*GENERATOR, "order=next_scale", "tokenizer_run=runs/single"],
            "order=next_scale needs a tokenizer of several",
        ),
        ([*GENERATOR, "tokenizer_run=runs/judge"], "runs/judge is not the run of a tokenizer"),
        ([*GENERATOR, "tokenizer_run=runs/none"], "runs/none is not a run directory"),
        ([*GENERATOR, "transformer.heads=5"], "width 32 must be a multiple of heads 5"),
        ([*GENERATOR, "sampler.top_p=0"], "more than 0 and at most 1"),
        ([*GENERATOR, "order=foo"], "order has no 'foo': Choose from alternate"),
        (["experiment=foo"], "experiment has no 'foo'"),
        (["experiment=digits/juge"], "did you mean 'digits/judge'"),
        ([*GENERATOR, "data.bach=3"], "there is no key 'data.bach': did you mean 'data.batch'?"),
        ([*GENERATOR, "oder=raster"], "there is no key 'oder': did you mean 'order'?"),
        ([*GENERATOR, "task.optimizer.lr=fast"], "task.optimizer"),
    ],
    ids=lambda value: value.replace("/", "_")[:40] if isinstance(value, str) else "",
)
def test_trainings_that_cannot_be(arguments: list[str], says: str, refused: Refused, lab: Path, tmp_path: Path) -> None:
    assert says in refused("train", f"out={tmp_path / 'run'}", *arguments)
    assert no_weights(tmp_path)


@pytest.mark.parametrize(
    ("command", "arguments", "says"),
    [
        ("evaluate", ["runs/none"], "runs/none is not a run directory"),
        ("sample", ["runs/raster", "cfg=yes"], "cfg=yes must be a number, as cfg=1.5 is"),
        ("evaluate", ["runs/judge"], "holds no image model"),
        ("evaluate", ["runs/next_scale", "n=1"], "ask for more"),
        ("evaluate", ["runs/next_scale", "extractor.run=runs/multi"], "runs/multi is not the run of a classifier"),
        (
            "evaluate",
            ["runs/next_scale", "extractor=inception", "extractor.weights=no.pth"],
            "no Inception weights at no",
        ),
        ("evaluate", ["runs/next_scale", "weights=best"], "use weights=ema"),
        ("evaluate", [], "Name one thing to score, the directory of a run or samples="),
        ("sample", ["runs/multi"], "is not the run of a generator"),
        ("sample", ["runs/next_scale", "labels=[3,11]"], "Label 11 is outside the 10 classes"),
        ("sample", ["runs/next_scale", "labels=[-1]"], "Label -1 is outside the 10 classes"),
        ("sample", ["runs/next_scale", "temperature=0"], "temperature=0 must be more than 0"),
        ("sample", ["runs/next_scale", "ramp=steep"], "ramp='steep' is unknown"),
        ("encode", ["runs/judge"], "holds no image model"),
        ("encode", ["runs/multi", "data=digits", "data.path=nowhere"], "no shard folder nowhere"),
        ("pack", ["source=folder", "path=nowhere"], "There is no image folder nowhere"),
        ("pack", ["source=folder"], "path has no value: give one with path="),
        ("pack", ["source=tars", "path=nowhere"], "There is no folder of shards nowhere"),
        ("pack", ["source=parquet", "path=nowhere"], "There is no Parquet file or folder nowhere"),
        ("pack", ["source=tars", "path=runs/data/source=digits", "source.classes=[a]"], "has 10 classes, not 1"),
        ("pack", ["source=fodler"], "source has no 'fodler': did you mean 'folder'?"),
    ],
    ids=lambda value: value.replace("/", "_")[:40] if isinstance(value, str) else "",
)
def test_questions_that_cannot_be(
    command: str, arguments: list[str], says: str, refused: Refused, lab: Path, tmp_path: Path
) -> None:
    assert says in refused(command, f"out={tmp_path / 'out'}", *arguments)
    assert no_weights(tmp_path) and not any(tmp_path.rglob("samples.*"))
    assert not (lab / "next_scale" / "scores").exists()


def test_no_judge(refused: Refused, lab: Path, tmp_path: Path) -> None:
    """auto finds none where there is none; so for every parent."""
    shutil.copytree(lab / "data", tmp_path / "work" / "runs" / "data")
    shutil.copytree(lab / "next_scale", tmp_path / "work" / "runs" / "next_scale")
    with small.inside(tmp_path / "work"):
        assert "No finished classifier with role=judge" in refused("evaluate", "runs/next_scale")
        assert "No finished classifier with role=perceptual" in refused("train", "out=runs/new", *MULTI)
        assert "No finished tokenizer" in refused("train", "out=runs/other", *GENERATOR)


@pytest.mark.parametrize("state", ["running", "failed"])
@pytest.mark.parametrize("command", ["evaluate", "sample", "encode"])
def test_a_run_that_is_not_finished(command: str, state: str, refused: Refused, lab: Path, tmp_path: Path) -> None:
    shutil.copytree(lab / "next_scale", tmp_path / "run")
    record = small.record(tmp_path / "run")
    record["outcome"]["state"] = state
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    assert f"is {state}, not finished" in refused(command, str(tmp_path / "run"), f"out={tmp_path / 'out'}")


def test_a_parent_that_is_not_finished(refused: Refused, lab: Path, tmp_path: Path) -> None:
    for name, key, arguments in (("single", "tokenizer_run", GENERATOR), ("perceptual", "perceptual.run", MULTI)):
        parent = tmp_path / name
        shutil.copytree(lab / name, parent)
        (parent / "weights.safetensors").unlink()
        record = small.record(parent)
        record["outcome"]["state"] = "running"
        (parent / "run.json").write_text(json.dumps(record))
        said = refused("train", f"out={tmp_path / 'run'}", *arguments, f"{key}={parent}")
        assert f"{parent} is running, not finished" in said


def test_a_damaged_record(refused: Refused, lab: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"command": "tr')
    assert "run.json cannot be read" in refused("sample", str(tmp_path / "run"), f"out={tmp_path / 'out'}")


# -- shards ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    """An image folder of two classes."""
    folder = tmp_path / "photographs"
    for label, kind in enumerate(("cats", "dogs")):
        (folder / kind).mkdir(parents=True)
        for i in range(8):
            Image.new("RGB", (16, 16), (label * 100, i * 20, 0)).save(folder / kind / f"{i}.png")
    return folder


def pack(photographs: Path, out: Path, *arguments: str) -> list[str]:
    return ["source=folder", f"path={photographs}", "source.size=16", f"out={out}", *arguments]


def test_an_empty_shard_folder(refused: Refused, lab: Path, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    said = refused("train", f"out={tmp_path / 'run'}", *JUDGE, f"data.path={tmp_path / 'shards'}")
    assert "shards is empty: pack into it with `varlab pack`" in said
    (tmp_path / "shards" / "train-000000.tar").write_bytes(b"")
    said = refused("train", f"out={tmp_path / 'run'}", *JUDGE, f"data.path={tmp_path / 'shards'}")
    assert "has no index.json: run `varlab pack` again to finish its packing" in said


def test_a_missing_a_cut_and_a_changed_shard(refused: Refused, photographs: Path, tmp_path: Path) -> None:
    shards = tmp_path / "shards"
    assert main(["pack", *pack(photographs, shards)]) == 0
    arguments = (f"out={tmp_path / 'run'}", *JUDGE, f"data.path={shards}")
    shard, whole = shards / "train-000000.tar", (shards / "train-000000.tar").read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    said = refused("train", *arguments)
    assert "are bad, over data.max_bad=0.001 (1 cut: cut: train-000000.tar" in said and "its index says" in said
    shard.write_bytes(whole.replace(b"IDAT", b"IDOT", 1))
    assert "are bad, over data.max_bad=0.001 (1 changed: changed: sample 0000" in refused("train", *arguments)
    shard.unlink()
    assert "(1 missing: missing: train-000000.tar (no such file" in refused("train", *arguments)
    assert no_weights(tmp_path)


def test_a_corrupt_image_is_named_and_counted_and_the_others_are_packed(
    photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = photographs / "dogs" / "3.png"
    bad.write_bytes(bad.read_bytes()[:40])
    assert main(["pack", *pack(photographs, tmp_path / "shards")]) == 0
    said = capsys.readouterr().err
    assert "dogs/3.png is skipped: cannot be decoded" in said and "1 skipped" in said
    summary = small.record(tmp_path / "shards")["outcome"]["summary"]
    assert sum(summary["images"].values()) == 15 and [s["name"] for s in summary["skipped"]] == ["dogs/3.png"]


# -- a full disk -------------------------------------------------------------------------------------------------------


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 256 kB, where this machine lets us mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode != 0:
        pytest.skip("no right to mount a small disk here; the next test does without")
    yield disk
    subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_full_disk_while_packing(tiny_disk: Path, refused: Refused) -> None:
    out = tiny_disk / "shards"
    assert "the disk is full: make room and run the same command again" in refused(
        "pack", "source=digits", f"out={out}"
    )
    assert not any(out.glob("*.tar")) and not (out / "index.json").exists() and not half_written(out)


def test_a_disk_without_room_for_a_checkpoint(tiny_disk: Path, refused: Refused, lab: Path) -> None:
    """It is refused before the first update."""
    said = refused("train", f"out={tiny_disk / 'new' / 'run'}", *MULTI)
    assert "MB of the disk are free: the disk is full: make room and run the same command again" in said
    assert not any(tiny_disk.iterdir())


def test_a_full_disk_in_the_middle_of_a_shard(
    refused: Refused, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[object] = []

    def full(*member: object, **settings: object) -> None:
        written.append(member)
        if len(written) > 7:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("varlab.data.format.writer.ShardWriter.add", full)
    assert "the disk is full" in refused("pack", *pack(photographs, tmp_path / "shards", "shard_size=20"))
    assert not any((tmp_path / "shards").glob("*.tar")) and not half_written(tmp_path)


# -- checkpoints -------------------------------------------------------------------------------------------------------


@pytest.fixture
def stopped(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The command of a training that stopped on its way, in tmp_path/run."""
    plain = Task.training_step

    def fails(task: Task, batch, batch_idx: int) -> object:
        if task.images >= 96:
            raise VarlabError("Stop.")
        return plain(task, batch, batch_idx)

    arguments = [f"out={tmp_path / 'run'}", *GENERATOR, "budget.images=128", "checkpoint.every=64"]
    with monkeypatch.context() as patch:
        patch.setattr(Task, "training_step", fails)
        assert main(["train", *arguments]) == 1
    assert (tmp_path / "run" / "last.ckpt").exists()
    return arguments


def test_a_truncated_checkpoint(stopped: list[str], refused: Refused, tmp_path: Path) -> None:
    checkpoint = tmp_path / "run" / "last.ckpt"
    checkpoint.write_bytes(checkpoint.read_bytes()[:5000])
    said = refused("train", *stopped)
    assert "last.ckpt does not hold a checkpoint that can be read (truncated or damaged): remove it" in said
    checkpoint.unlink()  # what it says does help
    assert main(["train", *stopped]) == 0


def test_a_checkpoint_of_another_configuration(stopped: list[str], refused: Refused, lab: Path, tmp_path: Path) -> None:
    shutil.copy(lab / "raster" / "last.ckpt", tmp_path / "run" / "last.ckpt")
    assert "last.ckpt is a checkpoint of another configuration" in refused("train", *stopped)
    assert not (tmp_path / "run" / "weights.safetensors").exists()


def test_another_configuration_into_a_stopped_run(stopped: list[str], refused: Refused, tmp_path: Path) -> None:
    said = refused("train", *stopped, "seed=9")
    assert "holds a run of another configuration: data.seed: 0 → 9, seed: 0 → 9. Use another out=" in said
    assert main(["train", *stopped]) == 0


def test_other_images_under_a_stopped_run(
    stopped: list[str], refused: Refused, photographs: Path, tmp_path: Path
) -> None:
    """The shards were packed anew in between."""
    record = small.record(tmp_path / "run")
    record["data"]["hash"] = "0" * 64
    (tmp_path / "run" / "run.json").write_text(json.dumps(record))
    assert "holds other images than when" in refused("train", *stopped)


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
    ids=["gpu", "torch", "python"],
)
def test_out_of_memory_ends_with_a_sentence_in_the_record(
    error: BaseException, refused: Refused, lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, batch: object) -> None:
        raise error

    monkeypatch.setattr(GeneratorTask, "loss", fail)
    assert refused("train", f"out={tmp_path / 'run'}", *small.GENERATOR).startswith("Out of memory (")
    assert "trainer.micro_batch" in small.record(tmp_path / "run")["outcome"]["error"]
