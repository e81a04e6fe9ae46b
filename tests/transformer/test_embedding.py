"""The embedding of inputs."""

from __future__ import annotations

import torch
from torch import nn

from varlab.order import NextScale
from varlab.rng import Rng
from varlab.testing.order_contract import OrderCase
from varlab.tokenizer import VQTokenizer
from varlab.transformer import Transformer, working_copy

SCALES = [[1, 1], [2, 2], [3, 3]]


def test_inputs_are_embedded_in_float32_under_autocast() -> None:
    """VAR embeds outside autocast: the sum of code, class, place and level is rounded only by what follows."""
    with Rng(0).scope("init"):
        tokenizer = VQTokenizer(
            scales=SCALES, vocab_size=16, code_dim=4, channels=8, channel_mult=[1, 2], groups=4, code_init=16.0
        )
        order = NextScale(scales=SCALES)
        model = Transformer(
            vocab_size=16,
            code_dim=4,
            num_classes=3,
            positions_P3=order.positions_P3,
            source_positions=False,
            width=32,
            depth=1,
            heads=2,
        )
    case = OrderCase.drawn(order, tokenizer, batch=3, atol=1e-5)
    slots, _ = order.pack(case.maps, tokenizer)
    cond_BD = model.classes(torch.tensor([0, 1, 3]))
    plain = model.embed(slots, cond_BD)
    with torch.autocast("cpu", torch.bfloat16):
        embedded = model.embed(slots, cond_BD)
        copied = working_copy(model, torch.device("cpu")).embed(slots, cond_BD)
        half = model.word(slots.x_BLC)
    assert half.dtype == torch.bfloat16 and embedded.dtype == torch.float32
    assert torch.equal(embedded, plain) and torch.equal(copied, plain)
    assert isinstance(model.word, nn.Linear)
