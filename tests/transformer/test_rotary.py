"""The rotation of queries and keys is a product of complex numbers, made once for all heads of a layer."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from varlab.transformer import Attention, Context, Transformer, Visible
from varlab.transformer.rotary import rotary_table, rotate, turns


def angles() -> torch.Tensor:
    place_BL = torch.arange(12).view(2, 6)
    return rotary_table(torch.arange(12) // 4, torch.arange(12) % 4, head_dim=8, base=100.0)[place_BL]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_is_the_complex_product(dtype: torch.dtype) -> None:
    x_BhLd = torch.randn(2, 3, 6, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    turn_B1Ld = torch.view_as_complex(angles())[:, None]
    expected = torch.view_as_real(torch.view_as_complex(x_BhLd.float().unflatten(-1, (-1, 2))) * turn_B1Ld).flatten(-2)
    assert torch.equal(rotate(x_BhLd, turns(angles())), expected.to(dtype))


class Flips(TorchDispatchMode):
    """Counts the rotations."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func.name() == "aten::flip"
        return func(*args, **(kwargs or {}))


def test_queries_and_keys_turn_together() -> None:
    attention = Attention(width=24, heads=3, qk_norm=False, scale=1.0, bias="none", kv_heads=1)
    step_L = torch.arange(6)
    context = Context(
        cond_BD=torch.zeros(2, 24),
        visible=Visible.of(step_L, step_L),
        cache=None,
        rng=None,
        rotary_2B1Ld=turns(angles()),
    )
    with Flips() as flips:
        attention(torch.randn(2, 6, 24), context, 0)
    assert flips.count == 1


def test_a_transformer_turns_by_row_and_column() -> None:
    """Not by level; the last row of the table, of inputs without a source, turns nothing."""
    positions_P3 = torch.tensor([(0, 0, 0), (0, 1, 0), (1, 0, 0), (1, 1, 1)])
    model = Transformer(
        vocab_size=5, code_dim=3, num_classes=2, positions_P3=positions_P3, source_positions=False, width=16, depth=1, heads=2,
        rotary=100.0,
    )  # fmt: skip
    table = rotary_table(positions_P3[:, 0], torch.tensor([0, 1, 0, 1]), head_dim=8, base=100.0)
    assert model.rotary_Pd2 is not None
    assert torch.equal(model.rotary_Pd2[:-1], table) and not model.rotary_Pd2[-1].any()
    assert len({tuple(row.flatten().tolist()) for row in model.rotary_Pd2[:-1]}) == 4
