"""The papers' models: parameters and FLOPs of each preset against the published numbers (the headers in conf/ say whose)."""

from __future__ import annotations

from functools import cache
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from varlab.recipe.assembly import build_order, build_tokenizer, example_slots
from varlab.recipe.flops import FlopCounter
from varlab.recipe.objects import make
from varlab.rng import Rng

from .conftest import load, names

IMAGENET = 1000


@cache
def tokenizer(name: str) -> Any:
    with torch.device("meta"):
        return build_tokenizer(load("tokenizer", name), Rng(0))


def order_of(name: str, scales) -> Any:
    return build_order(load("order", name), SimpleNamespace(scales=scales))


@cache
def transformer(name: str, tokens: str, order: str) -> nn.Module:
    the_tokenizer = tokenizer(tokens)
    the_order = order_of(order, the_tokenizer.scales)
    with torch.device("meta"):
        return make(
            load("transformer", name),
            vocab_size=the_tokenizer.vocab_size,
            code_dim=the_tokenizer.code_dim,
            num_classes=IMAGENET,
            positions_P3=the_order.positions_P3,
            source_positions=not the_order.fixed,
        )


def millions(module: nn.Module) -> float:
    return sum(p.numel() for p in module.parameters()) / 1e6


@pytest.mark.parametrize(
    ("name", "tokens", "order", "published", "within"),
    [
        ("var_d16", "var", "next_scale", 310, 0.01),
        ("var_d20", "var", "next_scale", 600, 0.01),
        ("var_d24", "var", "next_scale", 1000, 0.04),
        ("var_d30", "var", "next_scale", 2000, 0.02),
        ("var_d36_512", "var_512", "next_scale", 2300, 0.03),
        ("vqgan_307m", "vqgan_f16_1024", "raster", 307, 0.02),
        ("vqgan_cin", "vqgan_f16_16384", "raster", 1400, 0.02),
        ("llamagen_b", "llamagen_f16", "raster", 111, 0.01),
        ("llamagen_l", "llamagen_f16", "raster", 343, 0.01),
        ("llamagen_xl", "llamagen_f16", "raster", 775, 0.01),
        ("llamagen_xxl", "llamagen_f16", "raster", 1400, 0.02),
        ("llamagen_3b", "llamagen_f16", "raster", 3100, 0.02),
    ],
)
def test_parameters_of_transformers(name: str, tokens: str, order: str, published: float, within: float) -> None:
    assert millions(transformer(name, tokens, order)) == pytest.approx(published, rel=within)


@pytest.mark.parametrize("depth", [12, 16, 20, 24, 30, 36])
def test_var_grows_with_the_cube_of_its_depth(depth: int) -> None:
    """N = 73728·d³ in the matrices of the blocks; 49152·d³ where they share AdaLN. Width 64·d, heads d, drop path 0.1·d/24."""
    config = load("transformer", f"var_d{depth}")
    assert (config["width"], config["heads"]) == (64 * depth, depth)
    assert config["drop_path"] == pytest.approx(0.1 * depth / 24, rel=1e-4)
    blocks = transformer(f"var_d{depth}", "var", "next_scale").blocks
    assert sum(p.numel() for p in blocks.parameters() if p.ndim == 2) == 73728 * depth**3


def test_shared_adaln_is_two_thirds() -> None:
    blocks = transformer("var_d36_512", "var_512", "next_scale").blocks
    assert sum(p.numel() for p in blocks.parameters() if p.ndim == 2) == 49152 * 36**3


@pytest.mark.parametrize(
    ("name", "published", "within"), [("var", 109, 0.005), ("llamagen_f16", 72, 0.01), ("llamagen_f8", 70, 0.01)]
)
def test_parameters_of_tokenizers(name: str, published: float, within: float) -> None:
    assert millions(tokenizer(name)) == pytest.approx(published, rel=within)


@pytest.mark.parametrize(
    ("name", "tokens"),
    [("var", 680), ("var_512", 2240), ("var_1024", 9451), ("vqgan_f16_1024", 256), ("llamagen_f8", 1024)],
)
def test_tokens_of_an_image(name: str, tokens: int) -> None:
    made = tokenizer(name)
    assert sum(h * w for h, w in made.scales) == tokens
    assert made.image_size == {"var_512": (512, 512), "var_1024": (1024, 1024)}.get(name, (256, 256))


@pytest.mark.parametrize(
    ("name", "tokens", "order", "teraflops"),
    [
        ("var_d16", "var", "next_scale", 0.31),
        ("var_d20", "var", "next_scale", 0.59),
        ("var_d24", "var", "next_scale", 1.0),
        ("var_d30", "var", "next_scale", 1.92),
        ("var_d16", "vqgan_f16_1024", "raster", 0.107),
    ],
)
def test_forward_flops_of_an_image(name: str, tokens: str, order: str, teraflops: float) -> None:
    scales = tokenizer(tokens).scales
    model = transformer(name, "var", "next_scale")  # the tables of positions cost nothing
    example = SimpleNamespace(scales=scales, code_dim=32, blank=lambda b: torch.zeros(b, 32, *scales[-1]))
    example.embed = lambda idx: torch.zeros(*idx.shape, 32)
    example.accumulate = lambda f_hat, k, h: f_hat
    slots = example_slots(order_of(order, scales), example)  # type: ignore[arg-type]
    counted = FlopCounter().transformer(model, slots)
    assert counted / 1e12 == pytest.approx(teraflops, rel=0.05)


def test_flops_of_vars_tokenizer() -> None:
    assert FlopCounter().encode(tokenizer("var"), (256, 256)) / 1e12 == pytest.approx(0.215, rel=0.05)
    assert FlopCounter().decode(tokenizer("var")) / 1e12 == pytest.approx(0.39, rel=0.05)


def test_every_preset_is_compared_with_something() -> None:
    """A new preset wants its row above."""
    counted = {"var_d12", "var_d36", "var_d16_plain_attention", "var_d16_gpt2"} | {
        row[0]
        for mark in test_parameters_of_transformers.pytestmark
        for row in mark.args[1]  # type: ignore[attr-defined]
    }
    assert {name for name in names("transformer") if not name.startswith("tiny")} == counted
