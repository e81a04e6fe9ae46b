"""Editing, for every order and tokenizer: what is known stays, at every scale; what is not is sampled as ever."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import Tensor

from tests.bounds import SAME
from varlab.model import Model
from varlab.sample import Sampler, kept_maps
from varlab.sample.images import decode_maps

from .conftest import World

pytestmark = pytest.mark.usefixtures("in_float64")

SAMPLER = Sampler(cfg=0.0, ramp="linear", temperature=1.0, top_k=0, top_p=1.0)


@pytest.fixture
def world(world_of_a_kind: World) -> World:
    return world_of_a_kind


def model_of(world: World) -> Model:
    return Model(
        tokenizer=world.tokenizer,
        order=world.order,
        transformer=world.transformer(),
        sampler=SAMPLER,
        classes=tuple("abcdefg"),
    )


def images(world: World) -> Tensor:
    with torch.no_grad():
        return decode_maps(world.tokenizer, world.maps)


def half(img_B3HW: Tensor) -> Tensor:
    """The right half is painted."""
    mask_BHW = torch.zeros_like(img_B3HW[:, 0])
    mask_BHW[:, :, mask_BHW.shape[2] // 2 :] = 1
    return mask_BHW


def edited(model: Model, img: Tensor, mask: Tensor, labels: list[int] | None = None, **settings):
    """Token maps of an edit."""
    force = model.known(img, mask, force_small=settings.pop("force_small", False))
    labels = labels or [model.transformer.num_classes] * len(img)
    return model.sample_maps(labels, seed=5, force=force, **settings)


def test_known_tokens_are_the_images_own(world: World) -> None:
    model, img = model_of(world), images(world)
    own, keep = model.encode(img), kept_maps(half(img), world.tokenizer.scales, force_small=False)
    maps = edited(model, img, half(img))
    for idx, known, kept in zip(maps, own, keep, strict=True):
        assert torch.equal(idx[kept], known[kept])
    assert any(bool((idx != known).any()) for idx, known in zip(maps, own, strict=True))


def test_a_full_mask_is_free_sampling_and_an_empty_one_the_reconstruction(world: World) -> None:
    model, img = model_of(world), images(world)
    full, labels = torch.ones_like(img[:, 0]), [1] * len(img)
    assert torch.equal(model.edit(img, full, labels, seed=5, force_small=False), model.sample(labels, seed=5))
    empty = model.edit(img, torch.zeros_like(full), labels, seed=5)
    assert torch.equal(empty, model.decode(model.encode(img)))


def test_an_edit_depends_on_seed_and_sample_alone(world: World) -> None:
    model, img = model_of(world), images(world)
    together = edited(model, img, half(img))
    alone = edited(model, img[1:2], half(img)[1:2], ids_B=torch.tensor([1]))
    assert all(torch.equal(a[1:2], b) for a, b in zip(together, alone, strict=True))


def test_small_scales_are_kept_unless_asked_otherwise(world: World) -> None:
    """VAR's editing code keeps those of three tokens at most, whatever the mask: 1×1, but not 2×2."""
    model, img = model_of(world), images(world)
    full = torch.ones_like(img[:, 0])
    kept, free = (kept_maps(full, world.tokenizer.scales, force_small=small) for small in (True, False))
    assert [bool(k.all()) for k in kept] == [h * w <= 3 for h, w in world.tokenizer.scales]
    assert not any(bool(k.any()) for k in free) and all(bool(k.all()) or not bool(k.any()) for k in kept)
    assert all(inspect.signature(f).parameters["force_small"].default is True for f in (model.known, model.edit))
    for (h, w), idx, own in zip(
        world.tokenizer.scales, edited(model, img, full, force_small=True), model.encode(img), strict=True
    ):
        if h * w <= 3:
            assert torch.equal(idx, own)


def test_the_rule_counts_tokens() -> None:
    scales = [(1, 1), (1, 2), (2, 2), (1, 3), (3, 3)]
    kept = kept_maps(torch.ones(1, 8, 8), scales, force_small=True)
    assert [bool(k.all()) for k in kept] == [True, True, False, True, False]


def test_blending_keeps_known_pixels(world: World) -> None:
    model, img = model_of(world), images(world)
    mask = half(img)
    out = model.edit(img, mask, seed=5, blend=True)
    known = (mask == 0)[:, None].expand_as(img)
    assert torch.equal(out[known], img[known])


def test_smooth_edits_keep_exact_codes(world: World) -> None:
    """Where all is known, soft codes leave no trace."""
    model, img = model_of(world), images(world)
    if model.transformer.token_inputs:
        return
    empty = torch.zeros_like(img[:, 0])
    soft = model.edit(img, empty, seed=5, smooth=True)
    torch.testing.assert_close(soft, model.decode(model.encode(img)), rtol=0, atol=SAME)
    assert not torch.equal(model.edit(img, 1 - empty, seed=5, smooth=True), model.edit(img, 1 - empty, seed=5))
