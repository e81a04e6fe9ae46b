"""Files are whole or not there, hold nothing but data, and say what is wrong with them."""

from __future__ import annotations

import errno
import hashlib
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from varlab.checkpoint import load_checkpoint, load_weights, read_metadata, save_checkpoint, save_weights
from varlab.checkpoint.weight_blocks import LARGEST, WeightBlocks
from varlab.files import atomic_write, sha256
from varlab.types import VarlabError


def test_an_interrupted_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_is_a_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(VarlabError, match="the disk is full"), atomic_write(tmp_path / "file"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_weights_come_back_to_the_bit(tmp_path: Path) -> None:
    net, other = nn.Linear(3, 2), nn.Linear(3, 2)
    path = tmp_path / "net.safetensors"
    save_weights(path, net.state_dict(), {"images": "12"})
    load_weights(other, path)
    assert torch.equal(net.weight, other.weight) and torch.equal(net.bias, other.bias)
    assert read_metadata(path) == {"images": "12"}
    assert sha256(path) == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (nn.Linear(3, 2, bias=False), "no tensor 'bias'"),
        (nn.Linear(4, 2), r"'weight' has shape \(2, 4\)"),
        (nn.BatchNorm1d(2), "no tensor 'weight'|no place|shape"),
    ],
)
def test_weights_of_another_configuration_are_named(stored: nn.Module, message: str, tmp_path: Path) -> None:
    save_weights(tmp_path / "w", stored.state_dict(), {})
    with pytest.raises(VarlabError, match=f"another configuration.*({message})"):
        load_weights(nn.Linear(3, 2), tmp_path / "w")


def test_an_unexpected_tensor_is_named(tmp_path: Path) -> None:
    save_weights(tmp_path / "w", nn.Linear(3, 2).state_dict(), {})
    with pytest.raises(VarlabError, match="'bias' has no place"):
        load_weights(nn.Linear(3, 2, bias=False), tmp_path / "w")


@pytest.mark.parametrize("keep", [0, 1, 100, -1])
def test_a_truncated_file_is_a_sentence(keep: int, tmp_path: Path) -> None:
    save_weights(tmp_path / "w", nn.Linear(30, 20).state_dict(), {})
    save_checkpoint(tmp_path / "c", {"weights": torch.zeros(1000)})
    for name in ("w", "c"):
        (tmp_path / name).write_bytes((tmp_path / name).read_bytes()[:keep])
    with pytest.raises(VarlabError, match="truncated or damaged"):
        load_weights(nn.Linear(30, 20), tmp_path / "w")
    with pytest.raises(VarlabError, match="truncated or damaged"):
        load_checkpoint(tmp_path / "c")


def test_a_missing_file_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(VarlabError, match="no file"):
        load_checkpoint(tmp_path / "nothing")


def test_a_checkpoint_holds_tensors_and_json_types_only(tmp_path: Path) -> None:
    state = {"n": 1, "x": [1.5, None, True, "s"], "t": torch.arange(3), "optimizer": {0: {"betas": (0.9, 0.95)}}}
    save_checkpoint(tmp_path / "c", state)
    loaded = load_checkpoint(tmp_path / "c")
    assert torch.equal(loaded.pop("t"), torch.arange(3))
    assert loaded == {k: v for k, v in state.items() if k != "t"}
    for bad in (tmp_path, {1, 2}, object(), torch.float32):
        with pytest.raises(TypeError, match="state"):
            save_checkpoint(tmp_path / "bad", {"a": [bad]})
    assert not (tmp_path / "bad").exists()


def test_code_in_a_checkpoint_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"x": Evil()}, tmp_path / "c")
    with pytest.raises(VarlabError, match="checkpoint"):
        load_checkpoint(tmp_path / "c")
    assert not (tmp_path / "ran").exists()


def test_an_interrupt_while_a_checkpoint_is_written_stays_an_interrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Torch turns it into a RuntimeError about the file's end; whoever pressed Ctrl-C is to hear of that instead."""

    def interrupted(*args: object, **kwargs: object) -> None:
        try:
            raise KeyboardInterrupt
        finally:
            raise RuntimeError("unexpected pos 713216 vs 713104")

    monkeypatch.setattr(torch, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(tmp_path / "last.ckpt", {"step": 1})
    assert not list(tmp_path.iterdir())


class Places(nn.Module):
    """Parameters of several blocks, of another type, and not contiguous."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Parameter(torch.randn(700, 600))
        self.short = nn.Parameter(torch.randn(30, 20, dtype=torch.bfloat16))
        self.turned = nn.Parameter(torch.randn(5, 4).t())
        self.register_buffer("count", torch.tensor(7))
        self.register_buffer("none", torch.zeros(0, 3))


def test_weights_go_to_any_place_that_takes_them(tmp_path: Path) -> None:
    stored, module = Places(), Places()
    state = stored.state_dict() | {"short": stored.short.detach().float()}
    save_weights(tmp_path / "w", state, {})
    load_weights(module, tmp_path / "w")
    assert all(torch.equal(value, stored.state_dict()[name]) for name, value in module.state_dict().items())
    assert not module.turned.is_contiguous() and module.short.dtype == torch.bfloat16


@pytest.mark.parametrize("place", [0, 200_000, 419_999])
def test_every_block_of_a_tensor_is_judged_and_compared(place: int, tmp_path: Path) -> None:
    path, state = tmp_path / "w", Places().state_dict()
    state["large"].view(-1)[place] = float("nan")
    save_weights(path, state, {})
    with pytest.raises(VarlabError, match="diverged: its tensor 'large'"):
        load_weights(Places(), path)
    state["large"].view(-1)[place] = 0.125
    save_weights(path, state, {})
    data = bytearray(path.read_bytes())
    start = data.index(state["large"].numpy().tobytes())
    data[start + 4 * place] ^= 1
    path.write_bytes(data)
    with pytest.raises(VarlabError, match="does not hold what varlab wrote"):
        load_weights(Places(), path)


@settings(max_examples=60)
@given(st.floats(width=32), st.integers(0, 6))
def test_a_sound_weight_is_one_whose_square_is_finite(value: float, place: int) -> None:
    tensor = torch.arange(7.0).index_fill(0, torch.tensor(place), value)
    blocks = WeightBlocks({"a": tensor}, {})
    assert b"".join(blocks) == tensor.numpy().tobytes()
    assert (blocks.diverged == "a") == (not abs(value) <= LARGEST)
