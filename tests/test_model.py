"""``varlab.load``: shapes, ranges and refusals of the Python door, and that a generator's directory needs nothing else."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

import varlab
from tests import small
from tests.bounds import SAME, float64
from varlab.rng import Rng
from varlab.types import VarlabError, to_uint8

LENGTHS = {"next_scale": [1, 4, 9, 16], "raster": [16], "multi": [1, 4, 9, 16], "single": [16]}
VOCAB = 32


@pytest.fixture(params=["next_scale", "raster"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def images(batch: int) -> torch.Tensor:
    return Rng(3).stream("img", torch.arange(batch)).uniform(3, 16, 16) * 2 - 1


@pytest.mark.parametrize("run", LENGTHS)
def test_encode_and_decode(run: str, lab: Path) -> None:
    model = varlab.load(lab / run)
    maps = model.encode(images(3))
    assert [m.shape for m in maps] == [(3, length) for length in LENGTHS[run]]
    assert all(m.dtype == torch.int64 and int(m.min()) >= 0 and int(m.max()) < VOCAB for m in maps)
    img_B3HW = model.decode(maps)
    assert img_B3HW.shape == (3, 3, 16, 16) and float(img_B3HW.abs().max()) <= 1
    assert torch.equal(model.decode(model.encode(images(3))), img_B3HW)
    assert all(torch.equal(a, b) for a, b in zip(model.encode(images(3).double()), maps, strict=True))
    with pytest.raises(VarlabError, match="floats in"):
        model.encode(to_uint8(images(3)))


def test_logits(name: str, lab: Path) -> None:
    model = varlab.load(str(lab / name))
    maps = model.encode(images(3))
    logits_BLV = model.logits([0, 9, 10], maps)  # 10: no class
    assert logits_BLV.shape == (3, sum(LENGTHS[name]), VOCAB) and logits_BLV.dtype == torch.float32
    assert torch.equal(model.logits(torch.tensor([0, 9, 10]), maps), logits_BLV)
    assert torch.equal(model.logits(None, maps)[2], logits_BLV[2])


@float64()
def test_sample(name: str, lab: Path) -> None:
    model = varlab.load(lab / name)
    img_B3HW = model.sample([3, 1, 4], seed=7)
    assert img_B3HW.shape == (3, 3, 16, 16) and float(img_B3HW.abs().max()) <= 1
    assert torch.equal(model.sample([3, 1, 4], seed=7), img_B3HW)
    assert not torch.equal(model.sample([3, 1, 4], seed=8), img_B3HW)
    torch.testing.assert_close(model.sample([4], seed=7, ids_B=torch.tensor([2]))[0], img_B3HW[2], atol=SAME, rtol=0)
    guided = model.sample([3, 1, 4], seed=7, cfg=3.0, top_k=5, top_p=0.9, temperature=0.7, ramp="constant")
    assert guided.shape == img_B3HW.shape and not torch.equal(guided, img_B3HW)
    greedy = [model.sample([3, 1], seed=seed, top_k=1) for seed in (0, 1)]
    assert torch.equal(*greedy)
    assert model.sample(None, ids_B=torch.arange(2)).shape == (2, 3, 16, 16)


@float64()
def test_growth_ends_in_the_sample(name: str, lab: Path) -> None:
    model = varlab.load(lab / name)
    frames = model.growth([3, 1], seed=7, frames=4)
    assert frames.shape[0] == 2 and frames.shape[1] <= 4 and frames.shape[2:] == (3, 16, 16)
    torch.testing.assert_close(frames[:, -1], model.sample([3, 1], seed=7), atol=SAME, rtol=0)


def test_weights_raw_and_averaged_differ(lab: Path) -> None:
    maps = varlab.load(lab / "raster").encode(images(1))
    averaged, raw = (varlab.load(lab / "raster", weights=w).logits([1], maps) for w in ("ema", "raw"))
    assert not torch.equal(averaged, raw)


def test_gradients_flow_through_logits(lab: Path) -> None:
    model = varlab.load(lab / "next_scale")
    model.logits([1], model.encode(images(1))).sum().backward()
    assert model.transformer is not None and model.transformer.head.weight.grad is not None


def test_labels_outside_the_classes(name: str, lab: Path) -> None:
    model = varlab.load(lab / name)
    for wrong in (-1, 11):
        with pytest.raises(VarlabError, match=rf"Label {wrong} is outside the 10 classes"):
            model.sample([0, wrong])
        with pytest.raises(VarlabError, match=rf"Label {wrong} is outside the 10 classes"):
            model.logits([wrong], model.encode(images(1)))


def test_classes_by_name_are_those_by_number(lab: Path) -> None:
    model = varlab.load(lab / "next_scale")
    named = model.sample(["3", model.classes[1]], seed=7)
    assert torch.equal(named, model.sample([3, 1], seed=7))
    with pytest.raises(VarlabError, match="No class of this run is named 'cat'"):
        model.sample(["cat", 3])


@pytest.mark.parametrize("shape", [(1, 3, 32, 32), (1, 1, 16, 16), (3, 16, 16)])
def test_images_of_another_size(shape: tuple[int, ...], lab: Path) -> None:
    with pytest.raises(VarlabError, match=r"encodes images of shape \(B, 3, 16, 16\), not"):
        varlab.load(lab / "multi").encode(torch.zeros(shape))


def test_a_tokenizer_does_not_sample(lab: Path) -> None:
    model = varlab.load(lab / "multi")
    for ask in (
        lambda: model.sample([1]),
        lambda: model.logits([1], model.encode(images(1))),
        lambda: model.growth([1]),
    ):
        with pytest.raises(VarlabError, match="need the run of a generator"):
            ask()


@pytest.mark.parametrize(
    ("run", "says"),
    [
        ("nowhere", "has no run.json"),
        (".", "has no run.json"),
        ("judge", "holds no image model"),
        ("data/source=digits", "holds no image model"),
    ],
)
def test_what_holds_no_model(run: str, says: str, lab: Path) -> None:
    with pytest.raises(VarlabError, match=says):
        varlab.load(lab / run)


def test_weights_that_do_not_exist(lab: Path, tmp_path: Path) -> None:
    with pytest.raises(VarlabError, match=r"kept no best weights.*use weights=ema"):
        varlab.load(lab / "multi", weights="best")
    shutil.copytree(lab / "multi", tmp_path / "run")
    file = tmp_path / "run" / "weights.safetensors"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(VarlabError, match="truncated or damaged"):
        varlab.load(tmp_path / "run")
    file.write_bytes((lab / "single" / "weights.safetensors").read_bytes())
    with pytest.raises(VarlabError, match="checkpoint of another configuration"):
        varlab.load(tmp_path / "run")


def test_a_generators_directory_needs_nothing_else(name: str, lab: Path, tmp_path: Path) -> None:
    """Copied elsewhere, from where no parent can be seen."""
    shutil.copytree(lab / name, tmp_path / "elsewhere" / "copy")
    maps, img_B3HW = varlab.load(lab / name).encode(images(2)), varlab.load(lab / name).sample([1, 2], seed=3)
    with small.inside(tmp_path / "elsewhere"):
        model = varlab.load("copy")
    assert torch.equal(model.sample([1, 2], seed=3), img_B3HW)
    assert all(torch.equal(a, b) for a, b in zip(model.encode(images(2)), maps, strict=True))
    assert model.classes == tuple("0123456789")
