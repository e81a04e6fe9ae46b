"""Weights and checkpoints carry their digest: what is read is what was written, or it is refused."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests import small
from varlab.checkpoint import (
    io,
    load_checkpoint,
    load_weights,
    read_metadata,
    read_weights,
    save_checkpoint,
    save_weights,
    seal,
)
from varlab.cli.main import main
from varlab.errors import VarlabError

STATE = {"a": torch.arange(300.0), "b": torch.arange(7), "empty": torch.zeros(0)}
CHECKPOINT: dict[str, Any] = {"config_hash": "x", "modules": {"model": STATE}, "images": 32, "betas": (0.9, 0.95)}


def written(folder: Path, kind: str) -> tuple[Path, Any]:
    """(a file, its reader)"""
    path = folder / f"{kind}.file"
    if kind == "weights":
        save_weights(path, STATE, {"images": "32"})
        return path, read_weights
    save_checkpoint(path, CHECKPOINT)
    return path, lambda file: load_checkpoint(file)["modules"]["model"]


@st.composite
def damages(draw: st.DrawFn) -> Any:
    """A function from sound bytes to damaged ones: one bit, a run of zeros, a cut end, added bytes, swapped halves."""
    kind, place = (
        draw(st.sampled_from(["bit", "zeros", "cut", "more", "swap"])),
        draw(st.floats(0, 1, exclude_max=True)),
    )
    bit = draw(st.integers(0, 7))

    def damage(data: bytes) -> bytes:
        at = int(place * len(data))
        return {
            "bit": lambda: data[:at] + bytes([data[at] ^ 1 << bit]) + data[at + 1 :],
            "zeros": lambda: data[:at] + bytes(len(data[at : at + 512])) + data[at + 512 :],
            "cut": lambda: data[:at],
            "more": lambda: data + bytes(1 + bit),
            "swap": lambda: data[at:] + data[:at],
        }[kind]()

    return damage


@pytest.mark.parametrize("kind", ["weights", "checkpoint"])
def test_damaged_bytes_are_refused_or_change_nothing(kind: str, tmp_path: Path) -> None:
    path, read = written(tmp_path, kind)
    sound = path.read_bytes()

    @settings(max_examples=40)  # a thousand others: make attack
    @given(damages())
    def refused(damage: Any) -> None:
        path.write_bytes(damage(sound))
        try:
            tensors = read(path)
        except VarlabError as error:
            assert str(path) in str(error)
        else:
            assert tensors.keys() == STATE.keys() and all(torch.equal(tensors[name], STATE[name]) for name in STATE)

    refused()


@pytest.mark.parametrize("kind", ["weights", "checkpoint"])
def test_the_digest_is_what_refuses(kind: str, tmp_path: Path) -> None:
    """A flipped bit in the middle of a tensor, which neither format notices by itself."""
    path, read = written(tmp_path, kind)
    data = bytearray(path.read_bytes())
    at = data.index(torch.arange(300.0).numpy().tobytes()) + 602
    data[at] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        VarlabError, match=r"does not hold what varlab wrote \(truncated or damaged\).* run the command"
    ):
        read(path)


def test_other_tools_read_the_files_as_before(tmp_path: Path) -> None:
    weights, _ = written(tmp_path, "weights")
    assert torch.equal(safetensors.torch.load_file(weights)["a"], STATE["a"])
    assert read_metadata(weights) == {"images": "32"}
    checkpoint, _ = written(tmp_path, "checkpoint")
    assert torch.equal(torch.load(checkpoint, weights_only=True)["modules"]["model"]["a"], STATE["a"])
    with zipfile.ZipFile(checkpoint) as archive:
        assert archive.testzip() is None and archive.comment.startswith(b"varlab_xxh3=")
    assert load_checkpoint(checkpoint).keys() == CHECKPOINT.keys()


def test_the_same_state_gives_the_same_bytes(tmp_path: Path) -> None:
    for kind in ("weights", "checkpoint"):
        path, _ = written(tmp_path, kind)
        first = path.read_bytes()
        assert written(tmp_path, kind)[0].read_bytes() == first


@pytest.mark.parametrize("kind", ["weights", "checkpoint"])
def test_files_with_a_sha256_are_verified(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(seal, "_NEW", seal._SEALS[1])
        path, read = written(tmp_path, kind)
    data = bytearray(path.read_bytes())
    assert b"varlab_sha256" in data and read(path).keys() == STATE.keys()
    data[data.index(torch.arange(300.0).numpy().tobytes()) + 602] ^= 1
    path.write_bytes(data)
    with pytest.raises(VarlabError, match="does not hold what varlab wrote"):
        read(path)


def test_files_of_earlier_versions_and_of_others_are_read(tmp_path: Path) -> None:
    safetensors.torch.save_file(STATE, tmp_path / "old.safetensors")
    assert torch.equal(read_weights(tmp_path / "old.safetensors")["b"], STATE["b"])
    torch.save(CHECKPOINT, tmp_path / "old.ckpt")
    assert load_checkpoint(tmp_path / "old.ckpt")["images"] == 32


def test_a_checkpoint_without_the_digest_that_it_had_is_refused(tmp_path: Path) -> None:
    path, _ = written(tmp_path, "checkpoint")
    torch.save(torch.load(path, weights_only=True), path)
    with pytest.raises(VarlabError, match="has lost the digest"):
        load_checkpoint(path)


@pytest.mark.parametrize("kind", ["weights", "checkpoint"])
def test_a_damaged_name_of_the_digest_is_a_lost_digest(kind: str, tmp_path: Path) -> None:
    path, read = written(tmp_path, kind)
    path.write_bytes(path.read_bytes().replace(b"varlab_xxh3", b"varlab_xxh4"))
    with pytest.raises(VarlabError, match="has lost the digest"):
        read(path)


def test_the_checkpoint_before_stays_until_the_next_one_was_read_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, _ = written(tmp_path, "checkpoint")
    before = path.read_bytes()

    def spoiled(self: Any) -> None:  # a disk that keeps other bytes than it was given
        close(self)
        self._file.seek(600)
        self._file.write(b"\xff")
        self._file.flush()

    close = io.SealedFile.close
    monkeypatch.setattr(io.SealedFile, "close", spoiled)
    with pytest.raises(VarlabError, match=r"checkpoint\.file does not hold what varlab wrote"):
        save_checkpoint(path, CHECKPOINT | {"images": 64})
    assert path.read_bytes() == before and [one.name for one in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf"), 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_weights_of_a_diverged_training_are_refused(value: float, dtype: torch.dtype, tmp_path: Path) -> None:
    layer = nn.Linear(3, 3).to(dtype)
    state = layer.state_dict()
    state["bias"] = torch.tensor([0.0, value, 1.0], dtype=dtype)
    save_weights(tmp_path / "w", state, {})
    with pytest.raises(VarlabError, match="comes from a training that diverged: its tensor 'bias'"):
        load_weights(layer, tmp_path / "w")


def test_a_training_that_ends_with_them_is_not_finished(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "run"
    asked = [*small.RUNS["raster"], "budget.images=64", "task.optimizer.lr=1e30", "pictures.count=1", "val.skip=true"]
    assert main(["train", *asked, f"out={out}"]) == 1
    assert "Training diverged" in capsys.readouterr().err
    assert small.record(out)["outcome"]["state"] == "failed" and not (out / "weights.safetensors").exists()


def test_a_flipped_bit_in_a_runs_files_is_named_by_the_commands(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("weights.safetensors", "tokenizer.safetensors"):
        run = tmp_path / name
        shutil.copytree(lab / "raster", run)
        data = bytearray((run / name).read_bytes())
        data[-1000] ^= 4
        (run / name).write_bytes(data)
        assert main(["sample", str(run), "n=1", f"out={tmp_path / 'out'}"]) == 1
        said = capsys.readouterr().err
        assert f"{run / name} does not hold what varlab wrote" in said and "Traceback" not in said
