"""Conditions: packed beside their images, read and augmented together, and absent by default."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from varlab.data.format.index import read_index
from varlab.data.format.index_builder import build_index
from varlab.data.format.scan import ScanSettings
from varlab.data.image.augment import Augment
from varlab.data.pack.conditions import CropBoxes, Edges, LowResolution, PairedImages
from varlab.data.pack.packer import pack
from varlab.data.pack.sources.base import SourceSample
from varlab.data.pack.sources.digits import Digits
from varlab.data.pack.sources.folder import ImageFolder
from varlab.data.pack.sources.photos import Photos
from varlab.data.shard_module import ShardDataModule
from varlab.types import VarlabError

Make = Callable[..., ShardDataModule]
EDGES = Edges(sigma=1.0, low=0.05, high=0.15)


class Itself:
    """A condition that is the image."""

    name = "itself"

    def describe(self) -> dict[str, Any]:
        return {}

    def draw(self, sample: SourceSample, image: Image.Image) -> Image.Image:
        return image


class Gradient:
    """Crops of one picture whose red and green are each pixel's place from the top and from the left."""

    classes = ("a",)
    image_size = (16, 16)
    side = 240

    def describe(self) -> dict[str, Any]:
        return {"name": "gradient"}

    def entries(self, split: str) -> range:
        return range(8)

    def load(self, split: str, i: int) -> SourceSample:
        place = (np.arange(self.side) + 0.5) / self.side * 255
        whole = np.stack([*np.meshgrid(place, place, indexing="ij"), np.zeros((self.side, self.side))], -1)
        top, left, size = 7 * i, 90 - 11 * i, 80 + 16 * (i % 3)
        crop = Image.fromarray(whole.astype(np.uint8)[top : top + size, left : left + size])
        box = tuple(n / self.side for n in (top, left, top + size, left + size))
        image = crop.resize((16, 16), Image.Resampling.BOX)
        return SourceSample(key=f"{i:02d}", label=0, image=image, box=box)  # type: ignore[arg-type]


def names_in(shard: Path) -> list[str]:
    with tarfile.open(shard) as tar:
        return tar.getnames()


def test_shards_without_a_condition_have_no_trace_of_it(tmp_path: Path, make_images: Any) -> None:
    pack(make_images(train=2, val=1), tmp_path / "plain", shard_size=9)
    assert names_in(tmp_path / "plain" / "train-000000.tar") == ["0000.png", "0000.cls", "0001.png", "0001.cls"]
    index = json.loads((tmp_path / "plain" / "index.json").read_text())
    assert set(index) == {"version", "classes", "image_size", "splits", "tables", "source", "sha256"}
    info = read_index(tmp_path / "plain").info
    assert info.condition is None and not info.boxes
    pack(Gradient(), tmp_path / "boxed", shard_size=9)
    assert {name.split(".")[1] for name in names_in(tmp_path / "boxed" / "train-000000.tar")} == {"png", "cls"}


def test_a_condition_is_a_second_png_of_its_sample(tmp_path: Path, make_digits: Callable[..., Digits]) -> None:
    summary = pack(make_digits(), tmp_path, shard_size=5000, condition=EDGES)
    assert names_in(tmp_path / "train-000000.tar")[:3] == ["000000.png", "000000.cls", "000000.cond.png"]
    index = read_index(tmp_path)
    assert index.info.condition == "edges" and "edges(sigma=1.0" in index.info.source and summary["hash"] == index.hash
    (url,) = [str(tmp_path / s.file) for s in index.splits["val"]]
    theirs = list(webdataset.WebDataset(url, shardshuffle=False).decode("pil").to_tuple("png", "cond.png"))
    data = ShardDataModule(
        path=tmp_path,
        batch=4,
        eval_batch=4,
        seed=0,
        workers=0,
        augment=Augment(flip=False, crop=1, noise=0),
        cache_bytes=0,
    )
    samples = data.samples("val")
    assert samples.cond_u8_B3HW is not None and samples.box_B4 is None
    for i, (image, condition) in enumerate(theirs):
        assert np.array_equal(np.asarray(image).transpose(2, 0, 1), samples.img_u8_B3HW[i].numpy())
        assert np.array_equal(np.asarray(condition).transpose(2, 0, 1), samples.cond_u8_B3HW[i].numpy())
    assert set(samples.cond_u8_B3HW.unique().tolist()) == {0, 255}


@pytest.mark.parametrize("workers", [0, 2])
def test_image_and_condition_are_augmented_equally(
    tmp_path: Path, make_images: Any, make_module: Make, workers: int
) -> None:
    pack(make_images(train=37, val=5), tmp_path, shard_size=10, condition=Itself())
    data = make_module(tmp_path, workers=workers, augment=Augment(flip=True, crop=1.5, noise=0.0))
    plain = make_module(tmp_path, augment=Augment(flip=False, crop=1.0, noise=0.0))
    moved = 0
    for batch, before in zip(data.train_loader(0, 48, 0, 1), plain.train_loader(0, 48, 0, 1), strict=True):
        assert batch.cond_u8_B3HW is not None and torch.equal(batch.cond_u8_B3HW, batch.img_u8_B3HW)
        moved += int((batch.img_u8_B3HW != before.img_u8_B3HW).flatten(1).any(1).sum())
    assert moved > 40
    noisy = make_module(tmp_path, augment=Augment(flip=True, crop=1.5, noise=9.0))
    (batch, *_), (clean, *_) = list(noisy.train_loader(0, 8, 0, 1)), list(data.train_loader(0, 8, 0, 1))
    assert torch.equal(batch.cond_u8_B3HW, clean.cond_u8_B3HW) and not torch.equal(batch.img_u8_B3HW, clean.img_u8_B3HW)


@pytest.mark.parametrize(("flip", "crop"), [(False, 1.0), (True, 1.0), (False, 1.25), (True, 1.5)])
def test_boxes_follow_the_pixels(tmp_path: Path, make_module: Make, flip: bool, crop: float) -> None:
    """The colours of each pixel are its place in the picture, which must follow from the box."""
    pack(Gradient(), tmp_path, shard_size=9, condition=CropBoxes())
    data = make_module(tmp_path, augment=Augment(flip=flip, crop=crop, noise=0.0))
    assert data.info.boxes and data.info.condition is None
    mirrored = 0
    for batch in data.train_loader(0, 48, 0, 1):
        assert batch.box_B4 is not None and batch.cond_u8_B3HW is None
        top, left, bottom, right = batch.box_B4.unbind(1)
        middle = (torch.arange(16) + 0.5) / 16
        rows, columns = (a[:, None] + (b - a)[:, None] * middle for a, b in ((top, bottom), (left, right)))
        inner = slice(2, -2)  # enlarging repeats what lies at the border
        place = batch.img_u8_B3HW[:, :2, inner, inner].float() / 255
        torch.testing.assert_close(place[:, 0], rows[:, inner, None].expand(-1, -1, 12), atol=0.015, rtol=0)
        torch.testing.assert_close(place[:, 1], columns[:, None, inner].expand(-1, 12, -1), atol=0.015, rtol=0)
        mirrored += int((left > right).sum())
    assert (mirrored > 0) == flip


def test_photos_store_the_boxes_of_their_crops(tmp_path: Path) -> None:
    source = Photos(
        photos=["coins"], size=64, train_crops=3, val_crops=2, zoom=1.5, resample="lanczos", val_fraction=0.25, seed=0
    )
    pack(source, tmp_path, shard_size=9, condition=EDGES)
    with tarfile.open(tmp_path / "val-000000.tar") as tar:
        member = tar.extractfile("000001-coins.json")
        assert member is not None
        top, left, bottom, right = json.load(member)["box"]
    width, height = 384, 303
    expected = source.boxes("coins", "val")[1]
    assert (top * height, left * width, bottom * height, right * width) == pytest.approx(expected)
    with pytest.raises(VarlabError, match="coordinates need source=photos"):
        pack(
            Digits(size=8, resample="bicubic", val_fraction=0.2, seed=0), tmp_path, shard_size=9, condition=CropBoxes()
        )


def test_view_condition_hands_out_the_conditions_as_images(tmp_path: Path, make_images: Any, make_module: Make) -> None:
    pack(make_images(train=9, val=5), tmp_path / "edges", shard_size=10, condition=EDGES)
    data, second = (make_module(tmp_path / "edges", view=view) for view in ("image", "condition"))
    assert torch.equal(second.images("val"), data.samples("val").cond_u8_B3HW)
    assert second.samples("val").cond_u8_B3HW is None and second.info.view == "condition"
    assert second.info.hash == data.info.hash and second.info != data.info
    first, other = (next(iter(d.train_loader(0, 8, 0, 1))) for d in (data, second))
    assert torch.equal(first.cond_u8_B3HW, other.img_u8_B3HW) and torch.equal(first.label_B, other.label_B)
    pack(make_images(train=9, val=5), tmp_path / "plain", shard_size=10)
    with pytest.raises(VarlabError, match="holds no conditions to view"):
        make_module(tmp_path / "plain", view="condition").images("val")
    with pytest.raises(VarlabError, match=r"data\.view=second is unknown"):
        make_module(tmp_path / "plain", view="second")


def test_conditions_of_another_folder(tmp_path: Path) -> None:
    """The same relative path, any ending; what has no condition is skipped and named."""
    for name in ("x", "y"):
        for part in ("images", "maps"):
            (tmp_path / part / name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (40, 30), (i * 99, 0, 0)).save(tmp_path / "images" / name / f"{i}.jpg")
            if (name, i) != ("y", 1):
                Image.new("L", (40, 30), 80 + i).save(tmp_path / "maps" / name / f"{i}.png")
    source = ImageFolder(path=str(tmp_path / "images"), size=16, resample="lanczos", val_fraction=0.3, seed=0)
    condition = PairedImages(path=str(tmp_path / "maps"), resample="nearest")
    summary = pack(source, tmp_path / "out", shard_size=9, condition=condition)
    assert sum(summary["images"].values()) == 5
    assert [s["name"] for s in summary["skipped"]] == ["y/1.jpg"] and "has no condition" in summary["skipped"][0][
        "reason"
    ]
    assert read_index(tmp_path / "out").info.condition == "folder"
    with pytest.raises(VarlabError, match="no folder of conditions"):
        PairedImages(path=str(tmp_path / "nowhere"), resample="nearest")
    with pytest.raises(VarlabError, match="comes from no file"):
        pack(Gradient(), tmp_path / "none", shard_size=9, condition=condition)


def test_a_sample_that_lacks_the_usual_condition_is_a_fault(tmp_path: Path, make_images: Any) -> None:
    pack(make_images(train=9, val=2), tmp_path, shard_size=9, condition=LowResolution(factor=2, resample="bilinear"))
    shard = tmp_path / "train-000000.tar"
    with tarfile.open(shard) as tar:
        kept = [(m, tar.extractfile(m)) for m in tar.getmembers() if m.name != "0004.cond.png"]
        with tarfile.open(tmp_path / "other.tar", "w", format=tarfile.USTAR_FORMAT) as other:
            for member, content in kept:
                other.addfile(member, content)
    (tmp_path / "other.tar").replace(shard)
    splits = {"train": ["train-000000.tar"], "val": ["val-000000.tar"]}
    settings = ScanSettings(label="auto", classes=None, decode=False, most_pixels=1 << 20, size=None)
    rest: Any = {"settings": settings, "source": {"name": "x"}, "val_fraction": 0.0, "seed": 0, "workers": 0}
    with pytest.raises(VarlabError, match=r"1 no_condition: no_condition: sample 0004 in train-000000\.tar"):
        build_index(tmp_path, splits=splits, max_bad=0.0, **rest)
    index, faults = build_index(tmp_path, splits=splits, max_bad=0.1, **rest)
    assert index.info.counts == {"train": 8, "val": 2} and index.info.condition == "given"
    assert [fault.key for fault in faults] == ["0004"]


def test_edges_lie_where_grey_changes() -> None:
    step = np.zeros((32, 32), np.uint8)
    step[:, 16:] = 200
    edges = np.asarray(EDGES.of(Image.fromarray(step)))
    assert set(np.unique(edges)) == {0, 255} and set(np.nonzero(edges)[1]) <= {15, 16}
    assert (edges[2:-2] > 0).any(1).all()
    assert not np.asarray(EDGES.of(Image.new("RGB", (32, 32), "red"))).any()
    with pytest.raises(VarlabError, match="sigma > 0"):
        Edges(sigma=0, low=0.1, high=0.2)


def test_low_resolution_keeps_means_and_loses_detail() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8))
    low = LowResolution(factor=4, resample="bicubic").draw(SourceSample("k", 0, noise), noise)
    assert low.size == noise.size and np.mean(low) == pytest.approx(np.mean(noise), abs=2)
    assert np.std(low) < np.std(noise) / 3
