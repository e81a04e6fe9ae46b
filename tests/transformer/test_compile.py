"""Compiled blocks: what they compute, that no part stays outside, and that all blocks share what was compiled."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from tests.laws.conftest import World, load
from varlab.recipe.objects import make
from varlab.rng import Rng
from varlab.sample import Sampler
from varlab.sample.images import decode_maps
from varlab.transformer import Transformer
from varlab.transformer.compilation import compiled
from varlab.types import Slots, VarlabError

pytestmark = pytest.mark.compiles

LENGTHS, B, DEPTH = (1, 4, 9, 70), 3, 3
NAMES = ("tiny", "tiny_gpt2", "tiny_llama", "var_d36_512")


@pytest.fixture(autouse=True)
def new() -> Iterator[None]:
    """Nothing compiled before, and nothing left."""
    torch._dynamo.reset()
    compiled.cache_clear()
    counters.clear()
    yield
    torch._dynamo.reset()
    compiled.cache_clear()


def transformer(name: str) -> Transformer:
    config = load("transformer", name) | {"width": 32, "depth": DEPTH, "heads": 2, "drop_path": 0.3}
    if name == "tiny_llama":
        config["block"] = config["block"] | {"dropout": 0.2}
    level_P = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    places = torch.stack([torch.arange(len(level_P)), torch.zeros_like(level_P), level_P], 1)
    with Rng(0).scope("init"):
        made: Transformer = make(
            config, vocab_size=11, code_dim=4, num_classes=5, positions_P3=places, source_positions=False
        )
        for weight in made.parameters():
            torch.nn.init.normal_(weight, std=0.3)
    return made


def inputs(model: Transformer) -> tuple[Slots, Tensor]:
    step_L = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(LENGTHS))
    pos_BL = torch.arange(len(step_L)).expand(B, -1)
    src_BL = torch.where(step_L > 0, pos_BL, -1)
    x_BLC = Rng(1).stream("x", torch.arange(B)).normal(len(step_L), 4)
    return Slots(x_BLC, pos_BL % 11, src_BL, pos_BL, step_L, step_L), torch.arange(B)


def made(model: Transformer, **how: Any) -> list[Tensor]:
    """The logits of a training, and the gradients of their squares."""
    slots, label_B = inputs(model)
    model.zero_grad()
    logits_BLV = model(slots, label_B, rng=Rng(2), ids_B=torch.arange(B), **how)
    logits_BLV.square().mean().backward()
    return [logits_BLV.detach(), *(weight.grad.clone() for weight in model.parameters() if weight.grad is not None)]


@pytest.mark.parametrize("name", ["tiny", *(pytest.param(name, marks=pytest.mark.slow) for name in NAMES[1:])])
def test_compiled_blocks_compute_the_same(name: str) -> None:
    """Up to rounding, with drops, in the forward and the backward pass. Each function is compiled for a block without
    stochastic depth (the first) and for one with it, not for every block, and without a graph break; a second update, which
    recomputes, compiles nothing."""
    model = transformer(name)
    plain, fast = made(model), made(model, compile=True)
    graphs = counters["stats"]["unique_graphs"]
    assert graphs <= 4 and not counters["graph_break"]
    for one in (fast, made(model, compile=True, recompute=True)):
        assert len(plain) == len(one) > 10
        for mine, theirs in zip(one, plain, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)
    assert counters["stats"]["unique_graphs"] == graphs


def test_a_processor_compiles_in_float32_only() -> None:
    model = transformer("tiny")
    with torch.autocast("cpu", dtype=torch.bfloat16), pytest.raises(VarlabError, match="precision=32-true"):
        made(model, compile=True)


@pytest.mark.slow
@pytest.mark.parametrize("order", ["next_scale", "raster"])
def test_compiled_sampling_draws_the_same(order: str) -> None:
    """Step by step from a cache, with guidance; its functions are compiled for varying lengths, not for each."""
    world = World("multi", order, batch=4)
    tokenizer = world.tokenizer = copy.deepcopy(world.tokenizer).float()
    settings = {"cfg": 1.5, "ramp": "linear", "temperature": 1.0, "top_k": 6, "top_p": 0.9}
    maps = [
        Sampler(**settings)(
            transformer=world.transformer(), order=world.order, tokenizer=tokenizer, label_B=world.label_B,
            ids_B=world.ids_B, rng=world.rng, compile=compile,
        )
        for compile in (False, True)
    ]  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(*maps, strict=True))
    assert counters["stats"]["unique_graphs"] <= 12
    images = [decode_maps(tokenizer, maps[0], compile=compile) for compile in (False, True)]
    torch.testing.assert_close(*images, rtol=1e-4, atol=1e-5)
