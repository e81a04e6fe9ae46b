"""What is dropped in training keeps its expectation."""

from __future__ import annotations

from functools import partial

import pytest
import torch

from varlab.rng import Rng
from varlab.transformer import AdaLNBlock, GPT2Block, LlamaBlock, Transformer
from varlab.transformer.blocks.drops import Drop, Kept, kept
from varlab.types import Slots

SAMPLES = 20_000


@pytest.mark.parametrize("rate", [0.1, 0.4])
def test_stochastic_depth_keeps_the_expectation_of_a_branch(rate: float) -> None:
    """A sample's branch is 0 or 1/(1 - rate) times itself, as a whole."""
    stream = Rng(0).stream("dropout", torch.arange(SAMPLES))
    drawn = Drop(rate).draw(stream, 5)
    dropped = kept(torch.ones(SAMPLES, 2, 3), drawn)
    torch.testing.assert_close(kept(torch.ones(SAMPLES, 2, 3), [one.merged() for one in drawn]), dropped)
    assert torch.equal(dropped, dropped[:, :1, :1].expand_as(dropped))
    torch.testing.assert_close(dropped.unique(), torch.tensor([0.0, 1 / (1 - rate)]))
    error = (rate / (1 - rate) / SAMPLES) ** 0.5
    assert abs(float(dropped[:, 0, 0].mean()) - 1) < 4 * error
    assert Drop(rate).draw(None, 5) == []


@pytest.mark.parametrize("kind", [AdaLNBlock, GPT2Block, LlamaBlock])
def test_each_branch_has_a_drop_of_its_own(kind: type) -> None:
    """Without one of them a block is its input plus the other."""
    sizes = {} if kind is AdaLNBlock else {"mlp_ratio": 2.0}
    if kind is LlamaBlock:
        sizes |= {"multiple_of": 8, "kv_heads": None, "norm_eps": 1e-5, "dropout": 0.0}
    block = kind(width=8, heads=2, layer=1, drop_path=0.5, **sizes)
    x_BLD, attended_BLD = torch.randn(2, 2, 3, 8).unbind(0)
    given = tuple(torch.ones(6, 2, 1, 8).unbind(0))
    none, half = Kept(torch.zeros(2, 1, 1), 1.0), Kept(torch.ones(2, 1, 1), 0.5)
    without = block.finished(x_BLD, attended_BLD, given, [[none], [none]])
    torch.testing.assert_close(without, x_BLD)
    torch.testing.assert_close(block.finished(x_BLD, attended_BLD, given, [[half], [none]]), x_BLD + 2 * attended_BLD)
    mlp_BLD = block.finished(x_BLD, attended_BLD, given, [[none], []]) - x_BLD
    assert mlp_BLD.abs().max() > 1e-3
    torch.testing.assert_close(block.finished(x_BLD, attended_BLD, given, [[none], [half]]), x_BLD + 2 * mlp_BLD)


def test_dropout_of_a_branch_keeps_its_expectation() -> None:
    make = partial(LlamaBlock, width=8, heads=2, layer=1, drop_path=0.0, mlp_ratio=4.0, multiple_of=8, kv_heads=None)
    block = make(norm_eps=1e-5, dropout=0.25)
    stream = Rng(0).stream("dropout", torch.arange(500))
    ones_BLD = torch.ones(500, 5, 8)
    dropped = kept(ones_BLD, block.draws(stream, 2, ones_BLD))
    torch.testing.assert_close(dropped.unique(), torch.tensor([0.0, 4 / 3]))
    assert abs(float(dropped.mean()) - 1) < 4 * (0.25 / 0.75 / dropped.numel()) ** 0.5


def test_dropout_of_the_inputs_divides_by_the_share_that_is_kept() -> None:
    """GPT-2's dropout after the embeddings: what reaches the first block is 0 or 1/(1 - rate) times itself."""
    zeros = torch.zeros(400, 2, dtype=torch.int64)
    model = Transformer(
        vocab_size=5, code_dim=3, num_classes=2, positions_P3=torch.zeros(2, 3, dtype=torch.int64), source_positions=False,
        width=16, depth=1, heads=2, drop_path=0.0, dropout=0.25,
    )  # fmt: skip
    met: list[torch.Tensor] = []
    model.blocks[0].register_forward_pre_hook(lambda block, inputs: met.append(inputs[0]))
    slots = Slots(torch.ones(400, 2, 3), zeros, zeros, zeros, zeros[0], torch.arange(2))
    model(slots, zeros[:, 0])
    model(slots, zeros[:, 0], rng=Rng(0), ids_B=torch.arange(400))
    plain, dropped = met
    stays = dropped != 0
    torch.testing.assert_close(dropped[stays], plain[stays] / 0.75)
    assert abs(float(stays.double().mean()) - 0.75) < 4 * (0.25 * 0.75 / stays.numel()) ** 0.5
