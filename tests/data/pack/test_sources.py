"""Digits, photographs and folders as sources: the split, the sizes, and the names of skipped items."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.data.pack.loading import load_samples as samples
from tests.data.pack.loading import load_skipped as skipped
from varlab.data.pack.sources.base import stratified_split
from varlab.data.pack.sources.digits import Digits
from varlab.data.pack.sources.folder import ImageFolder
from varlab.data.pack.sources.photos import Photos, regions
from varlab.types import VarlabError

PHOTOS: dict[str, Any] = {
    "photos": ["astronaut", "chelsea", "coins", "page"],
    "size": 96,
    "train_crops": 6,
    "val_crops": 4,
    "zoom": 1.5,
    "resample": "lanczos",
    "val_fraction": 0.25,
    "seed": 0,
}


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0, 0.9), st.integers(0, 9))
def test_split_is_a_stratified_partition(labels: list[int], fraction: float, seed: int) -> None:
    split = stratified_split(labels, val_fraction=fraction, seed=seed)
    assert sorted(split["train"] + split["val"]) == list(range(len(labels)))
    members, val = Counter(labels), Counter(labels[i] for i in split["val"])
    for label, n in members.items():
        assert val[label] < n
        assert abs(val[label] - n * fraction) <= 1


def test_digits_are_split_80_20_in_every_class(make_digits: Callable[..., Digits]) -> None:
    source = make_digits()
    train, val = samples(source, "train"), samples(source, "val")
    assert len(train) + len(val) == 1797
    assert not {s.key for s in train} & {s.key for s in val}
    both, held = Counter(s.label for s in train + val), Counter(s.label for s in val)
    assert all(held[c] == round(both[c] * 0.2) for c in range(10))
    assert {s.key for s in samples(make_digits(seed=1), "val")} != {s.key for s in val}


def test_digits_keep_their_grey_levels(make_digits: Callable[..., Digits]) -> None:
    from sklearn.datasets import load_digits

    native = load_digits()
    for sample in samples(make_digits(size=8), "val")[:20]:
        expected_88 = np.round(native.images[int(sample.key)] * 255 / 16)
        assert isinstance(sample.image, Image.Image) and sample.image.mode == "L"
        assert np.array_equal(np.asarray(sample.image), expected_88)
        assert sample.label == native.target[int(sample.key)]


@given(st.integers(40, 900), st.integers(40, 900), st.integers(16, 256), st.floats(0.05, 0.5))
def test_photo_regions_are_disjoint_and_hold_a_crop(width: int, height: int, size: int, fraction: float) -> None:
    parts = regions(width, height, size=size, val_fraction=fraction)
    if parts is None:
        assert min(width, height) < size or max(width, height) < size + max(size, round(max(width, height) * fraction))
        return
    for top, left, bottom, right in parts.values():
        assert 0 <= left <= right - size and 0 <= top <= bottom - size
        assert right <= width and bottom <= height
    train, val = parts["train"], parts["val"]
    assert train[2] <= val[0] or train[3] <= val[1]


def test_no_val_crop_shares_a_pixel_with_a_training_crop() -> None:
    source = Photos(**PHOTOS | {"train_crops": 60, "val_crops": 60})
    for name in source.classes:
        for a, b in product(source.boxes(name, "train"), source.boxes(name, "val")):
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


def test_crops_are_squares_within_the_zoom() -> None:
    source = Photos(**PHOTOS | {"photos": ["astronaut"], "train_crops": 100})
    boxes = source.boxes("astronaut", "train")
    sides = [box.width for box in boxes]
    assert all(box.width == box.height for box in boxes)
    assert min(sides) >= 96 and max(sides) <= 144 and len(set(sides)) > 20


def test_small_photographs_are_skipped_named_and_no_class() -> None:
    assert Photos(**PHOTOS).classes == ("astronaut", "chelsea", "coins", "page")
    source = Photos(**PHOTOS | {"size": 256})
    assert source.classes == ("astronaut",)
    assert [s.name for s in skipped(source)] == ["chelsea", "coins", "page"]
    assert all(s.image.size == (256, 256) for s in samples(source, "train"))
    with pytest.raises(VarlabError, match="No photograph is large enough"):
        Photos(**PHOTOS | {"size": 400})
    with pytest.raises(VarlabError, match="no photograph 'nosuch'"):
        Photos(**PHOTOS | {"photos": ["nosuch"]})


def save(path: Path, image: Image.Image, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def folder(path: Path, **changes: Any) -> ImageFolder:
    return ImageFolder(
        **{"path": str(path), "size": 8, "resample": "lanczos", "val_fraction": 0.25, "seed": 0, **changes}
    )


def test_folder_skips_and_names_corrupt_images(tmp_path: Path) -> None:
    for label, n in product("xy", range(4)):
        save(tmp_path / label / f"{n}.jpg", Image.new("RGB", (12, 9), (n * 60, 0, 0)))
    (tmp_path / "x" / "1.jpg").write_bytes(b"not an image at all")
    whole = (tmp_path / "y" / "2.jpg").read_bytes()
    (tmp_path / "y" / "2.jpg").write_bytes(whole[: len(whole) // 2])
    source = folder(tmp_path)
    assert source.classes == ("x", "y")
    assert sorted(s.name for s in skipped(source)) == ["x/1.jpg", "y/2.jpg"]
    given_ = samples(source, "train") + samples(source, "val")
    assert sorted(s.key.split("-")[1] for s in given_ if s.label == 0) == ["0", "2", "3"]
    assert all(isinstance(s.image, Image.Image) and s.image.size == (8, 8) for s in given_)


def test_folder_takes_a_given_split(tmp_path: Path) -> None:
    for split, label, n in product(("train", "val"), "xy", range(2)):
        save(tmp_path / split / label / f"{split}{n}.png", Image.new("L", (8, 8)))
    source = folder(tmp_path, val_fraction=0.0)
    for split in ("train", "val"):
        assert sorted(s.key[9:] for s in samples(source, split)) == sorted([f"{split}{n}" for n in range(2)] * 2)
    save(tmp_path / "val" / "z" / "0.png", Image.new("L", (8, 8)))
    with pytest.raises(VarlabError, match="class 'z'"):
        folder(tmp_path)


def test_folder_crops_the_centre_of_the_upright_image(tmp_path: Path) -> None:
    wide = np.zeros((8, 24, 3), dtype=np.uint8)
    wide[:, 8:16] = 255
    turned = Image.Exif()
    turned[0x0112] = 6  # stored lying on its side
    save(tmp_path / "x" / "wide.png", Image.fromarray(wide))
    save(tmp_path / "x" / "turned.png", Image.fromarray(wide), exif=turned)
    for sample in samples(folder(tmp_path, val_fraction=0.0), "train"):
        assert np.asarray(sample.image).min() > 200
    left = np.zeros((8, 8, 3), dtype=np.uint8)
    left[:, :4] = 255
    save(tmp_path / "x2" / "y" / "left.png", Image.fromarray(left), exif=turned)
    (sample,) = samples(folder(tmp_path / "x2", val_fraction=0.0), "train")
    assert np.asarray(sample.image)[:4].min() == 255 and np.asarray(sample.image)[4:].max() == 0


def test_folder_keeps_images_of_the_right_size_unchanged(tmp_path: Path) -> None:
    save(tmp_path / "x" / "a.b.jpg", Image.effect_noise((8, 8), 90).convert("RGB"), quality=50)
    (sample,) = samples(folder(tmp_path, val_fraction=0.0), "train")
    assert sample.image == (tmp_path / "x" / "a.b.jpg").read_bytes()
    assert sample.key == "00000000-a_b"


@pytest.mark.parametrize(
    ("mode", "colour", "expected"), [("RGBA", (0, 0, 0, 0), 255), ("I;16", 65535, 255), ("1", 1, 255)]
)
def test_folder_converts_every_mode_to_eight_bits(tmp_path: Path, mode: str, colour: Any, expected: int) -> None:
    save(tmp_path / "x" / "a.png", Image.new(mode, (16, 16), colour))
    (sample,) = samples(folder(tmp_path, val_fraction=0.0), "train")
    assert isinstance(sample.image, Image.Image) and sample.image.mode in ("L", "RGB")
    buffer = io.BytesIO()
    sample.image.save(buffer, format="PNG")
    assert np.asarray(Image.open(buffer)).min() == expected


def test_folder_errors_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(VarlabError, match="There is no image folder"):
        folder(tmp_path / "nowhere")
    with pytest.raises(VarlabError, match="no subfolders"):
        folder(tmp_path)
    (tmp_path / "x").mkdir()
    with pytest.raises(VarlabError, match="holds no images"):
        folder(tmp_path)
    with pytest.raises(VarlabError, match="no resampling filter 'cubic'"):
        folder(tmp_path, resample="cubic")
