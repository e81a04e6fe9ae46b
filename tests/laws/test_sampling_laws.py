"""Laws 4 and 5 of the design: the sampler sees training's logits; sample i depends on (seed, i) alone."""

from __future__ import annotations

import pytest
import torch

from tests.bounds import SAME
from varlab.sample import KnownTokens, Sampler
from varlab.sample.images import Growth, decode_maps
from varlab.testing.order_contract import sampler_sees_training
from varlab.types import VarlabError

from .conftest import World

pytestmark = pytest.mark.usefixtures("in_float64")

PLAIN = dict(cfg=0.0, ramp="linear", temperature=1.0, top_k=0, top_p=1.0)


@pytest.fixture
def world(world_of_a_kind: World) -> World:
    return world_of_a_kind


def draw(world: World, model, which: slice = slice(None), **settings):
    sampler = Sampler(**(PLAIN | settings))
    return sampler(
        transformer=model,
        order=world.order,
        tokenizer=world.tokenizer,
        label_B=world.label_B[which],
        ids_B=world.ids_B[which],
        rng=world.rng,
    )


def test_the_sampler_sees_trainings_logits(modelled: tuple[World, str]) -> None:
    world, name = modelled
    try:
        model = world.transformer(name)
    except VarlabError:
        return  # refused in a sentence, tested elsewhere
    sampler_sees_training(world.case, model)


@pytest.mark.parametrize("settings", [{}, {"cfg": 1.5, "top_k": 8, "top_p": 0.9}])
def test_sample_i_depends_on_seed_and_i_alone(world: World, settings: dict) -> None:
    """The same sample alone and in a batch: equal tokens (float64 leaves no decision to a rounding), equal pixels."""
    model = world.transformer()
    together = draw(world, model, **settings)
    alone = draw(world, model, slice(1, 2), **settings)
    assert all(torch.equal(a[1:2], b) for a, b in zip(together, alone, strict=True))
    pixels = decode_maps(world.tokenizer, together)[1:2] - decode_maps(world.tokenizer, alone)
    assert pixels.abs().max() <= SAME


def test_seeds_differ(world: World) -> None:
    model = world.transformer()
    one = torch.cat(draw(world, model), 1)
    world.ids_B = world.ids_B + 1000
    world.order_rng = world.rng.stream("order", world.ids_B)
    assert not torch.equal(one, torch.cat(draw(world, model), 1))


def test_zero_guidance_equals_the_conditional_model(world: World) -> None:
    """cfg → 0 through the two-branch path gives what the one-branch path gives."""
    model = world.transformer()
    plain, guided = draw(world, model), draw(world, model, cfg=1e-9)
    assert all(torch.equal(a, b) for a, b in zip(plain, guided, strict=True))


def test_forced_tokens_stay(world: World) -> None:
    """Editing's foundation: forcing every known token gives back the maps."""
    model = world.transformer()
    maps = Sampler(**PLAIN)(
        transformer=model,
        order=world.order,
        tokenizer=world.tokenizer,
        label_B=world.label_B,
        ids_B=world.ids_B,
        rng=world.rng,
        force=KnownTokens(order=world.order, maps=world.maps, keep=[torch.ones_like(m) for m in world.maps]),
    )
    assert all(torch.equal(a, b) for a, b in zip(maps, world.maps, strict=True))


def test_growth_ends_with_the_sample(world: World) -> None:
    model, growth = world.transformer(), Growth(order=world.order, tokenizer=world.tokenizer, frames=3)
    maps = Sampler(**PLAIN)(
        transformer=model,
        order=world.order,
        tokenizer=world.tokenizer,
        label_B=world.label_B,
        ids_B=world.ids_B,
        rng=world.rng,
        watch=growth,
    )
    frames = growth.images()
    assert frames.shape[1] == len(growth.steps) <= 3
    torch.testing.assert_close(frames[:, -1], decode_maps(world.tokenizer, maps), rtol=0, atol=SAME)
