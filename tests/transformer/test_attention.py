"""Normalised queries and keys of bfloat16 are those of float32, and so are their gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from varlab.rng import Rng
from varlab.transformer.attention import EVERYTHING, Attention, normalised
from varlab.transformer.context import Context


@pytest.mark.parametrize("heads", [1, 3])
def test_normalised_bfloat16_has_the_numbers_and_gradients_of_float32(heads: int) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, heads, 16, generator=draw).bfloat16().transpose(1, 2).requires_grad_()
    weight = torch.randn(x.shape, generator=draw).bfloat16()
    norm = torch.linspace(0.5, 8, heads)[:, None, None].requires_grad_()
    exact = [t.detach().double().requires_grad_() for t in (x, norm)]
    own, reference = normalised(x, norm), F.normalize(exact[0], dim=-1) * exact[1]
    assert own.dtype == torch.bfloat16 and own.is_contiguous()
    torch.testing.assert_close(own.double(), reference, rtol=5e-3, atol=0)
    gradients = torch.autograd.grad(own, (x, norm), weight)
    for mine, theirs in zip(gradients, torch.autograd.grad(reference, exact, weight.double()), strict=True):
        assert (mine.double() - theirs).norm() <= 2e-2 * theirs.norm()
    torch.testing.assert_close(normalised(x) * 1.0, normalised(x, torch.ones(heads, 1, 1)))


def test_a_vector_of_zeros_stays_zero() -> None:
    assert not normalised(torch.zeros(1, 1, 2, 4).bfloat16()).any()


def test_the_learned_scale_of_a_head_ends_at_a_hundred() -> None:
    """VAR: exp(min(s, log 100))."""
    with Rng(0).scope("init"):
        attention = Attention(width=16, heads=2, qk_norm=True, scale=1.0, bias="no_key")
    x_BLD = Rng(0).stream("x", torch.arange(3)).normal(5, 16)

    def attend(scale: float) -> torch.Tensor:
        assert attention.log_scale is not None
        attention.log_scale.data.fill_(math.log(scale))
        context = Context(cond_BD=x_BLD[:, 0], visible=EVERYTHING, cache=None, rng=None)
        return attention(x_BLD, context, 0)

    torch.testing.assert_close(attend(1000.0), attend(100.0))
    assert not torch.allclose(attend(50.0), attend(100.0))
