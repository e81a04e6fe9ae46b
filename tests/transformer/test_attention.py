"""Queries and keys are normalised as the formula says, and so are their gradients."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from varlab.rng import Rng
from varlab.transformer.attention import EVERYTHING, Attention, normalised
from varlab.transformer.context import Context


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize(
    ("dtype", "rounding", "error"),
    [
        (torch.bfloat16, 5e-3, 2e-2),
        (torch.float16, 1e-3, 3e-3),
        (torch.float32, 1e-6, 1e-6),
        (torch.float64, 1e-14, 1e-14),
    ],
)
def test_normalised_vectors_and_their_gradients_are_the_formulas(
    heads: int, dtype: torch.dtype, rounding: float, error: float
) -> None:
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(2, 5, heads, 16, generator=draw).to(dtype).transpose(1, 2).requires_grad_()
    weight = torch.randn(x.shape, generator=draw).to(dtype)
    wide = torch.promote_types(dtype, torch.float32)
    norm = torch.linspace(0.5, 8, heads, dtype=wide)[:, None, None].requires_grad_()
    exact = [t.detach().double().requires_grad_() for t in (x, norm)]
    before, own, reference = x.detach().clone(), normalised(x, norm), F.normalize(exact[0], dim=-1) * exact[1]
    assert own.dtype == dtype and (dtype.itemsize >= 4 or own.is_contiguous())
    torch.testing.assert_close(own.double(), reference, rtol=rounding, atol=0)
    gradients = torch.autograd.grad(own, (x, norm), weight)
    for mine, theirs in zip(gradients, torch.autograd.grad(reference, exact, weight.double()), strict=True):
        assert (mine.double() - theirs).norm() <= error * theirs.norm()
    torch.testing.assert_close(normalised(x) * 1.0, normalised(x, torch.ones(heads, 1, 1)))
    assert torch.equal(x, before)


def test_normalised_vectors_keep_only_themselves_for_the_backward_pass() -> None:
    x = torch.randn(4, 2, 8, 64).requires_grad_()
    sizes: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        sizes.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        normalised(x, torch.ones(2, 1, 1))
    assert sum(size >= x.numel() for size in sizes) == 1


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_vector_of_zeros_stays_zero(dtype: torch.dtype) -> None:
    x = torch.zeros(1, 1, 2, 4, dtype=dtype).requires_grad_()
    out = normalised(x)
    assert not out.any()
    (gradient,) = torch.autograd.grad(out.sum(), x)
    assert bool(gradient.isfinite().all())


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
