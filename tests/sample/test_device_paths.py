"""What a GPU computes in another way than a processor: the same, up to rounding, computed here."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from varlab.order.base import OnDevices
from varlab.rng import Rng
from varlab.sample.filter import _excluded, filter_logits
from varlab.sample.replay import Replay
from varlab.tokenizer.quantizer import _spline, by_products
from varlab.transformer.attention import _visible
from varlab.transformer.step_groups import sliced_attention, step_groups

META = torch.device("meta")


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 1 << 20),
    vocabulary=st.integers(2, 90),
    top_k=st.integers(0, 100),
    top_p=st.sampled_from([0.1, 0.5, 0.96, 1.0]),
)
def test_filters_by_one_sort_exclude_the_same(seed: int, vocabulary: int, top_k: int, top_p: float) -> None:
    logits_BlV = Rng(seed).stream("sample", torch.arange(3)).normal(4, vocabulary) * 3
    kept = filter_logits(logits_BlV, temperature=1.0, top_k=top_k, top_p=top_p).isfinite()
    k = top_k if 0 < top_k < vocabulary else vocabulary
    assert torch.equal(_excluded(logits_BlV, k, top_p), ~kept)


@settings(max_examples=30, deadline=None)
@given(small=st.tuples(st.integers(1, 9), st.integers(1, 9)), more=st.tuples(st.integers(0, 9), st.integers(0, 9)))
def test_splines_by_products_are_torchs(small: tuple[int, int], more: tuple[int, int]) -> None:
    h_BChw = Rng(0).stream("x", torch.arange(2)).normal(3, *small)
    size = (small[0] + more[0], small[1] + more[1])
    theirs = F.interpolate(h_BChw, size=size, mode="bicubic")
    torch.testing.assert_close(by_products(h_BChw, size), theirs, rtol=1e-5, atol=1e-6)


def test_attention_by_slices_is_that_of_the_whole_mask() -> None:
    """Also its gradients. Fewer groups than on a processor, and the steps of each see all up to its end or as the mask says."""
    step_L = torch.repeat_interleave(torch.arange(6), torch.tensor([1, 9, 100, 60, 170, 200]))
    groups = step_groups(step_L, META)
    assert [g.end for g in groups] == [170, 340, 540]
    groups = tuple(
        type(g)(g.start, g.end, None if g.mask_qk is None else _mask(step_L, g.start, g.end)) for g in groups
    )
    q, k, v = (Rng(i).stream("x", torch.arange(2)).normal(3, len(step_L), 8).requires_grad_() for i in range(3))
    sliced = sliced_attention(q, k, v, groups, scale=0.5)
    whole = F.scaled_dot_product_attention(q, k, v, attn_mask=step_L[None] <= step_L[:, None], scale=0.5)
    torch.testing.assert_close(sliced, whole)
    for mine, theirs in zip(
        *(torch.autograd.grad(out.square().sum(), (q, k, v)) for out in (sliced, whole)), strict=True
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-5)


def _mask(step_L: torch.Tensor, start: int, end: int) -> torch.Tensor:
    return torch.zeros(end - start, end).masked_fill(step_L[None, :end] > step_L[start:end, None], -torch.inf)


def test_what_steps_show_is_made_once() -> None:
    steps = (0, 1, 1, 2, 2, 2)
    assert _visible(steps, None, META, True) is _visible(steps, None, META, True)
    assert _visible(steps, None, META, True).groups[0].mask_qk.device == META  # type: ignore[union-attr]
    assert _visible(steps, None, torch.device("cpu"), False).groups[0].mask_qk.device.type == "cpu"  # type: ignore[union-attr]


def test_what_is_kept_serves_a_later_training() -> None:
    """Constants that are first asked for in inference mode can be saved for a backward pass."""
    constant, steps = OnDevices(torch.arange(3)), (0, 1, 1, 1, 2, 3, 3)
    with torch.inference_mode():
        kept = [
            constant.on(META),
            _spline(3, 7, torch.device("cpu")),
            _visible(steps, None, META, True).groups[0].mask_qk,
        ]
    assert not any(tensor.is_inference() for tensor in kept if tensor is not None)


def test_without_a_gpu_work_is_called() -> None:
    replay, calls = Replay(), []

    def work(x: torch.Tensor, y: torch.Tensor | None) -> torch.Tensor:
        calls.append(y)
        return x + 1

    assert [int(replay(work, torch.tensor(i), None)) for i in range(4)] == [1, 2, 3, 4] and len(calls) == 4
