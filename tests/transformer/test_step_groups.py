"""Grouped attention equals attention under the dense mask, and computes only the pairs that steps may see."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import profile
from torch.utils._python_dispatch import TorchDispatchMode

from varlab.transformer.attention import Visible
from varlab.transformer.step_groups import FEW, attention_of_bfloat16, grouped_attention, step_groups

TEN_SCALES = tuple(n * n for n in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16))
lengths = st.lists(st.one_of(st.integers(1, 8), st.integers(50, 90)), min_size=1, max_size=6)


def steps(lengths) -> Tensor:
    return torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))


def attended_and_gradients(step_L: Tensor, scale: float, dtype: torch.dtype, *, grouped: bool) -> list[Tensor]:
    """The result and the gradients of queries, keys and values; ``grouped`` or by the formula under a dense mask."""
    rng = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, len(step_L), 12, 8, generator=rng).transpose(1, 2).to(dtype)  # strided, as the model's are
    inputs = [x.detach().requires_grad_() for x in qkv.split(4, 1)]
    visible = Visible.of(step_L, step_L)
    if grouped:
        out = grouped_attention(*inputs, visible.groups, causal=visible.causal, scale=scale)
    else:
        q, k, v = (x.double() for x in inputs)
        logits = (q @ k.mT * scale).masked_fill(step_L[None, :] > step_L[:, None], -torch.inf)
        out = logits.softmax(-1) @ v
    weight = torch.randn(out.shape, generator=rng)
    return [out.detach(), *torch.autograd.grad(out, inputs, weight.to(dtype).to(out.dtype))]


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float64, 1e-12)])
@given(lengths=lengths, scale=st.sampled_from([1.0, 0.3]))
@settings(max_examples=6, deadline=None)
def test_grouped_attention_equals_the_dense_mask(
    dtype: torch.dtype, bound: float, lengths: list[int], scale: float
) -> None:
    step_L = steps([*lengths, 65])
    own = attended_and_gradients(step_L, scale, dtype, grouped=True)
    for mine, reference in zip(own, attended_and_gradients(step_L, scale, dtype, grouped=False), strict=True):
        assert (mine.double() - reference.double()).norm() <= bound * reference.double().norm()


def test_long_sequences_of_bfloat16_keep_no_probabilities() -> None:
    step_L = steps([32, 1500])
    with profile() as trace:
        own = attended_and_gradients(step_L, 0.3, torch.bfloat16, grouped=True)
    assert not any("bmm" in event.key for event in trace.key_averages())
    for mine, reference in zip(own, attended_and_gradients(step_L, 0.3, torch.bfloat16, grouped=False), strict=True):
        assert (mine.double() - reference.double()).norm() <= 2e-2 * reference.double().norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_grouped_attention_of_single_tokens(dtype: torch.dtype) -> None:
    step_L = torch.arange(-30, 120)
    assert Visible.of(step_L, step_L).causal
    own = attended_and_gradients(step_L, 0.3, dtype, grouped=True)
    for mine, reference in zip(own, attended_and_gradients(step_L, 0.3, dtype, grouped=False), strict=True):
        assert (mine.double() - reference.double()).norm() <= 2e-2 * reference.double().norm()


@given(lengths=lengths)
@settings(max_examples=50, deadline=None)
def test_groups_cover_each_slot_once_and_see_what_its_step_may_see(lengths: list[int]) -> None:
    step_L = steps(lengths)
    groups = step_groups(step_L)
    assert bool(groups) == (len(lengths) > 1)
    for group in groups:
        shown_qk = torch.ones(group.end - group.start, group.end, dtype=torch.bool)
        if group.mask_qk is not None:
            shown_qk = group.mask_qk == 0
        allowed_qk = step_L[None, :] <= step_L[group.start : group.end, None]
        assert torch.equal(F.pad(shown_qk, (0, len(step_L) - group.end)), allowed_qk)
    assert not groups or [g.start for g in groups] + [len(step_L)] == [0] + [g.end for g in groups]


@pytest.mark.parametrize("lengths", [(1, 2, 4, 8, 16, 60, 70), (1,) * 16])
def test_attention_of_bfloat16_is_products_and_makes_its_logits_once(lengths: tuple[int, ...]) -> None:
    """torch's own backward pass of bfloat16 takes twice as long at 31 slots, and six times at 16."""
    step_L = steps(lengths)
    with profile() as trace:
        attended_and_gradients(step_L, 0.25, torch.bfloat16, grouped=True)
    calls = {event.key: event.count for event in trace.key_averages()}
    assert calls["aten::bmm"] == (2 + 4) * len(step_groups(step_L))
    assert not any("scaled_dot_product" in name for name in calls)


@pytest.mark.parametrize("size", [4.0, 30.0, 100.0])
def test_large_logits_of_bfloat16_are_not_rounded(size: float) -> None:
    """Cosine attention (VAR) has logits up to 100, which bfloat16 would round to halves."""
    draw = torch.Generator().manual_seed(0)
    shared = torch.randn(1, 2, 1, 16, generator=draw)
    q, k, v, grad = (torch.randn(1, 2, 120, 16, generator=draw) for _ in range(4))
    q, k = (F.normalize(shared + x / 2, dim=-1) * norm for x, norm in ((q, size), (k, 1.0)))
    visible = Visible.of(step_L := steps((20, 100)), step_L)
    qkv = [x.bfloat16().requires_grad_() for x in (q, k, v)]
    exact = [x.detach().double().requires_grad_() for x in qkv]
    with torch.autocast("cpu", torch.bfloat16):
        out = grouped_attention(*qkv, visible.groups, causal=False, scale=1.0)
    logits = (exact[0] @ exact[1].mT).masked_fill(step_L[None, :] > step_L[:, None], -torch.inf)
    reference = logits.softmax(-1) @ exact[2]
    assert (out - reference).norm() <= 5e-3 * reference.norm()
    for mine, theirs in zip(
        torch.autograd.grad(out, qkv, grad.bfloat16()),
        torch.autograd.grad(reference, exact, grad.double()),
        strict=True,
    ):
        assert (mine - theirs).norm() <= 1.5e-2 * theirs.norm()
    alone = attention_of_bfloat16(*(x.detach() for x in qkv), scale=1.0)
    assert (alone - (exact[0] @ exact[1].mT).softmax(-1) @ exact[2]).norm() <= 5e-3 * alone.norm()


def test_decreasing_steps_use_the_mask() -> None:
    step_L = torch.arange(100).flip(0)
    visible = Visible.of(step_L, step_L)
    assert not visible.groups
    assert visible.allowed_qk is not None


class Largest(TorchDispatchMode):
    """Notes the most elements of a result, and of a result with as many rows as columns."""

    def __init__(self) -> None:
        super().__init__()
        self.square, self.all = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for x in made if isinstance(made, (tuple, list)) else (made,):
            if isinstance(x, Tensor) and x.ndim >= 2:
                self.all = max(self.all, x.numel())
                self.square = max(self.square, x.shape[-1] if x.shape[-1] == x.shape[-2] else 0)
        return made


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ten_scales_compute_few_hidden_pairs_and_no_dense_mask(dtype: torch.dtype) -> None:
    step_L = steps(TEN_SCALES)
    seen = sum(length * int((step_L <= k).sum()) for k, length in enumerate(TEN_SCALES))
    assert sum(group.pairs for group in Visible.of(step_L, step_L).groups) <= 1.02 * seen
    with Largest() as largest:
        attended_and_gradients(step_L, 1.0, dtype, grouped=True)
    assert largest.square <= 91
    assert largest.all <= 2 * 4 * 256 * 680


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("queries", [1, FEW, FEW + 1, 64])
def test_attention_of_bfloat16_is_that_of_float32_rounded_also_under_autocast(queries: int) -> None:
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, L, 16, generator=draw).bfloat16() for L in (queries, 80, 80))
    wide = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), scale=0.25)
    for keys, values in ((k, v), (k.float(), v.float())):
        with torch.autocast("cpu", torch.bfloat16):
            out = attention_of_bfloat16(q, keys, values, 0.25)
        assert out.dtype == torch.bfloat16
        torch.testing.assert_close(out.float(), wide, rtol=2e-2, atol=1e-2)
    if queries <= FEW:  # rounded once
        assert torch.equal(out, wide.bfloat16())
    else:  # torch's own, which rounds the weights, too
        plain = F.scaled_dot_product_attention(q, k, v, scale=0.25)
        assert torch.equal(out, plain) and not torch.equal(out, wide.bfloat16())
