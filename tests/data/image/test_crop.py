"""Crops: inside the image, of the wanted aspect, distributed as their papers have it, and the same for whoever asks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from varlab.data.image.crop import Box, Centre, Crop, FiveCrop, RandomCrop, RandomResizedCrop, draws
from varlab.data.image.decode import crop_into
from varlab.rng import Rng
from varlab.types import VarlabError

CROPS: dict[str, Crop] = {
    "centre": Centre(),
    "random": RandomCrop(enlarge=1.125),
    "ranged": RandomCrop(enlarge=(1.0, 1.25)),
    "five": FiveCrop(enlarge=[1.1, 1.05]),
    "resized": RandomResizedCrop(scale=(0.08, 1.0), ratio=(3 / 4, 4 / 3)),
}
SIDES = st.integers(1, 400)


@pytest.mark.parametrize("name", CROPS)
@given(height=SIDES, width=SIDES, aspect=st.sampled_from([0.5, 1.0, 1.5]), seed=st.integers(0, 99))
def test_a_crop_lies_in_its_image(name: str, height: int, width: int, aspect: float, seed: int) -> None:
    (u,) = draws(Rng(seed).stream("crop", 7))
    box = CROPS[name].box(height, width, aspect, u)
    h, w = box.height, box.width
    assert 0 <= box.top < box.bottom <= height and 0 <= box.left < box.right <= width
    if name != "resized" and min(height, width) > 40:
        assert w / h == pytest.approx(aspect, rel=0.06)


def test_more_numbers_begin_with_the_first() -> None:
    ids_B = torch.arange(5)
    many = Rng(3).stream("crop", ids_B).uniform(40)
    for row, u in enumerate(draws(Rng(3).stream("crop", ids_B))):
        assert [u[i] for i in (0, 11, 12, 39)] == [many[row, i].item() for i in (0, 11, 12, 39)]


def test_random_resized_crops_are_spread_as_asked() -> None:
    crop = RandomResizedCrop(scale=(0.25, 0.5), ratio=(0.5, 2.0))
    boxes = np.array([crop.box(300, 300, 1.0, u) for u in draws(Rng(0).stream("crop", torch.arange(4000)))])
    (top, left, bottom, right), n = boxes.T, 90_000
    share, ratio = (bottom - top) * (right - left) / n, np.log((right - left) / (bottom - top))
    assert share.min() > 0.24 and share.max() < 0.51 and abs(share.mean() - 0.375) < 0.01
    assert abs(ratio.mean()) < 0.03 and abs(ratio).max() < math.log(2.05)
    centres = ((top + bottom) / 2).mean(), ((left + right) / 2).mean()
    assert all(abs(centre - 150) < 4 for centre in centres)


def test_what_never_fits_is_the_middle() -> None:
    wide = RandomResizedCrop(scale=(1.0, 1.0), ratio=(1.0, 1.0))
    assert all(
        wide.box(10, 1000, 1.0, u) == Box(0, 495, 10, 505) for u in draws(Rng(0).stream("crop", torch.arange(20)))
    )


def test_vars_crop_takes_stored_pixels_as_they_are() -> None:
    """Images stored at 288 pixels: 256 of them, at any of 33 places, not resampled."""
    img_HW3 = np.random.default_rng(0).integers(0, 256, (288, 288, 3), dtype=np.uint8)
    out_HW3, tops = np.empty((256, 256, 3), dtype=np.uint8), set()
    for u in draws(Rng(0).stream("crop", torch.arange(300))):
        box = RandomCrop(enlarge=1.125).box(288, 288, 1.0, u)
        crop_into(out_HW3, img_HW3, box)
        assert np.array_equal(out_HW3, img_HW3[box.top : box.top + 256, box.left : box.left + 256])
        tops.add(box.top)
    assert tops == set(range(33))


def test_shrinking_averages_and_enlarging_interpolates() -> None:
    checks = np.indices((64, 64)).sum(0)[..., None].repeat(3, 2) % 2 * np.uint8(255)
    small, large = np.empty((16, 16, 3), dtype=np.uint8), np.empty((128, 128, 3), dtype=np.uint8)
    crop_into(small, checks.astype(np.uint8), Box(0, 0, 64, 64))
    assert small.min() >= 127 and small.max() <= 128  # no moiré
    ramp = np.linspace(0, 255, 64).astype(np.uint8)[None, :, None].repeat(64, 0).repeat(3, 2)
    crop_into(large, np.ascontiguousarray(ramp), Box(0, 0, 64, 64))
    assert (np.diff(large[0, :, 0].astype(int)) >= 0).all() and len(np.unique(large)) > 64


@pytest.mark.parametrize("wrong", [{"scale": (0, 1)}, {"scale": (0.5, 1.2)}, {"scale": (0.5, 0.2)}, {"ratio": (0, 1)}])
def test_nonsense_is_refused(wrong: dict[str, tuple[float, float]]) -> None:
    with pytest.raises(VarlabError, match=r"crop\.scale="):
        RandomResizedCrop(**{"scale": (0.08, 1.0), "ratio": (0.75, 1.33), **wrong})
    with pytest.raises(VarlabError, match=r"crop\.enlarge is 0\.9"):
        RandomCrop(enlarge=0.9)


def test_a_random_crop_reaches_the_whole_picture() -> None:
    """VAR: 256 pixels of a picture whose shorter side is 288, anywhere (utils/data.py). Of 500 × 375: 384 × 288."""
    crop = RandomCrop(enlarge=1.125)
    boxes = [crop.box(288, 384, 1.0, u) for u in draws(Rng(0).stream("crop", torch.arange(20_000)))]
    assert {(box.height, box.width) for box in boxes} == {(256, 256)}
    assert {box.top for box in boxes} == set(range(33)) and {box.left for box in boxes} == set(range(129))


def test_a_range_of_sides() -> None:
    """LlamaGen's tokenizer: the shorter side is 256 to 320 pixels, of which 256 are cut, so 4/5 to all of it."""
    crop = RandomCrop(enlarge=[1.0, 1.25])
    sides = np.array([crop.box(320, 400, 1.0, u).height for u in draws(Rng(0).stream("crop", torch.arange(4000)))])
    assert sides.min() == 256 and sides.max() == 320 and abs((320 / sides).mean() - 1.125) < 0.005


def test_five_places_of_the_middle_square() -> None:
    """LlamaGen: the middle 281 or 268 pixels, of which 256 are cut at the corners and in the middle."""
    crop = FiveCrop(enlarge=[281 / 256, 268 / 256])
    boxes = [crop.box(281, 400, 1.0, u) for u in draws(Rng(0).stream("crop", torch.arange(4000)))]
    large, small = ([box for box in boxes if box.height == side] for side in (256, 268))
    assert len(large) + len(small) == 4000 and 1850 < len(large) < 2150
    places = [(box.top, box.left - 59) for box in large]
    assert set(places) == {(0, 0), (0, 25), (25, 0), (25, 25), (12, 12)}
    assert all(330 < places.count(place) < 470 for place in set(places))


def test_bad_enlargements_are_said() -> None:
    for bad in (0.9, [1.2, 1.1], [1.0]):
        with pytest.raises(VarlabError, match=r"crop\.enlarge"):
            RandomCrop(enlarge=bad)
    with pytest.raises(VarlabError, match=r"crop\.enlarge"):
        FiveCrop(enlarge=[])
