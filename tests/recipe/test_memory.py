"""Memory plans: counted from shapes alone, equal to what real tensors take, and the table of the documentation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.laws.conftest import load
from varlab.losses.token_loss import token_loss
from varlab.order import NextScale
from varlab.recipe.assembly import example_slots
from varlab.recipe.objects import make
from varlab.recipe.trainer.memory import Devices, LiveBytes, Memory, activation_bytes, tensor_bytes, training_memory
from varlab.rng import Rng
from varlab.transformer import Transformer
from varlab.types import Slots

CARD, DOCS = 80e9, Path(__file__).parents[2] / "docs" / "cluster.md"
PRESETS = {"var_d30": "var", "var_d36_512": "var_512"}
PLANS = {"var_d30": {1: 64, 2: 64, 8: 64}, "var_d36_512": {1: 16, 2: 32, 8: 32}}
"""The micro-batch of each number of cards."""


class Canvas:
    """What an order asks of a tokenizer: images of zeros."""

    vocab_size, code_dim = 4096, 32

    def __init__(self, scales: list[list[int]]):
        self.scales = [tuple(scale) for scale in scales]

    def blank(self, batch: int) -> Tensor:
        return torch.zeros(batch, self.code_dim, *self.scales[-1])

    def embed(self, idx_Bl: Tensor) -> Tensor:
        return torch.zeros(*idx_Bl.shape, self.code_dim)

    def accumulate(self, f_hat_BChw: Tensor, k: int, h_BlC: Tensor) -> Tensor:
        return f_hat_BChw


def on_meta(name: str, scales: list[list[int]], device: str = "meta", **changes: Any) -> tuple[Transformer, Slots]:
    canvas: Any = Canvas(scales)
    order = NextScale(scales=scales)
    live = {"vocab_size": canvas.vocab_size, "code_dim": canvas.code_dim, "num_classes": 1000}
    with torch.device(device):
        places = {"positions_P3": order.positions_P3, "source_positions": False}
        model = make(load("transformer", name) | changes, **live, **places)
    return model, example_slots(order, canvas)


def preset(name: str) -> tuple[Transformer, Slots]:
    return on_meta(name, load("tokenizer", PRESETS[name])["scales"])


def planned(model: Transformer, slots: Slots, world: int, micro_batch: int) -> Memory:
    devices = Devices(world=world, shard=world > 1, recompute=True, micro_batch=micro_batch, average=True)
    return training_memory(model, slots, devices)


def row(name: str, world: int, micro_batch: int, memory: Memory) -> str:
    parts = [f"{size / 1e9:.1f}" for size in (*vars(memory).values(), memory.total)]
    return f"| `{name}` | {world} | {micro_batch} | {' | '.join(parts)} |"


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_the_plans_of_the_documentation_fit_the_cards(name: str) -> None:
    model, slots = preset(name)
    for world, micro_batch in PLANS[name].items():
        memory = planned(model, slots, world, micro_batch)
        assert memory.total < 0.9 * CARD
        assert row(name, world, micro_batch, memory) in DOCS.read_text()


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("world", [1, 2, 8])
def test_a_plan_counts_the_tensors_of_the_model(name: str, world: int) -> None:
    """Every weight with its gradient, two moments and an average, all cut along the first dimension."""
    model, _ = preset(name)
    numbers = sum(-(-len(p) // world) * p[0].numel() for p in model.parameters())
    assert tensor_bytes(model.parameters(), world) == 4 * numbers
    assert tensor_bytes(model.parameters()) <= world * 4 * numbers < 1.01 * tensor_bytes(model.parameters())


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_activations_are_those_of_real_tensors(precision: str, recompute: bool) -> None:
    """Of a model that is deeper than what the plan runs."""
    changes = {"width": 64, "depth": 5, "heads": 2}
    model, slots = on_meta("var_d16", [[1, 1], [2, 2], [4, 4]], "cpu", **changes)
    devices = Devices(precision=precision, recompute=recompute, micro_batch=3)
    expected = activation_bytes(model, slots, devices)
    batch, label_B = slots.repeat_batch(3), torch.zeros(3, dtype=torch.int64)
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(lambda p: setattr(p, "grad", None))
    with LiveBytes() as live:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision != "32-true"):
            logits_BLV = model(batch, label_B, rng=Rng(0), ids_B=label_B, recompute=recompute)
            loss = token_loss(logits_BLV.flatten(0, 1), batch.pos_BL.flatten(), label_smoothing=0.0)
        del logits_BLV
        loss.backward()
    assert live.peak == pytest.approx(expected, rel=0.02)
