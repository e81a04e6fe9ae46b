"""Block-causal attention without dense waste: each group of slots reads only the keys that it may see."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from varlab.processor import emulates_bfloat16, widened
from varlab.types import full_precision

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

_ROWS = 64  # steps of fewer slots are joined: matrix products of fewer rows cost more than the masked pairs
_ROWS_OF_GPU = 160
FEW = 16
"""Slots of a step whose attention is faster in float32 on a processor, also if all else is in bfloat16."""
_KEPT = (
    1 << 23
)  # pairs of a sample, over all heads, whose probabilities a layer keeps; beyond, memory counts more than time
_PAIRS = 1 << 19  # of query and key at once, so that they stay in the processor's cache
_CPU = torch.device("cpu")
_Part = tuple[slice, slice]  # of heads and slots


@dataclass(frozen=True)
class Group:
    """Slots ``start`` to ``end`` see keys 0 to ``end``: all of them, or those where mask_qk is 0 and not -inf.

    causal: the group is a whole sequence, and each slot sees those up to itself.
    """

    start: int
    end: int
    mask_qk: Tensor | None = None
    causal: bool = False

    def mask(self, dtype: torch.dtype) -> Tensor | None:
        """In the type of the queries: torch's flash attention reads the mask as if it had that."""
        return None if self.mask_qk is None else self.mask_qk.to(dtype)

    @property
    def pairs(self) -> int:
        """Pairs of query and key that are computed."""
        return (self.end - self.start) * self.end


def step_groups(step_L: Tensor, device: torch.device = _CPU) -> tuple[Group, ...]:
    """The groups of a sequence, a short one in a single group; none for a single step, or if steps decrease somewhere."""
    rows = _ROWS if device.type == "cpu" else _ROWS_OF_GPU
    if step_L[0] == step_L[-1] or bool((step_L[1:] < step_L[:-1]).any()):
        return ()
    bounds, start, end = [0], 0, 0
    for length in torch.unique_consecutive(step_L, return_counts=True)[1].tolist():
        if length >= rows and start < end:
            bounds.append(start := end)
        end += length
        if end - start >= rows:
            bounds.append(start := end)
    if start < end:
        bounds.append(end)
    return tuple(_group(step_L, start, end, device) for start, end in zip(bounds, bounds[1:], strict=False))


def _group(step_L: Tensor, start: int, end: int, device: torch.device) -> Group:
    if step_L[start] == step_L[end - 1]:
        return Group(start, end)
    hidden_qk = step_L[None, :end] > step_L[start:end, None]
    return Group(start, end, torch.zeros(hidden_qk.shape).masked_fill(hidden_qk, -torch.inf).to(device))


def sliced_attention(
    q_BhLd: Tensor, k_BhLd: Tensor, v_BhLd: Tensor, groups: tuple[Group, ...], *, scale: float
) -> Tensor:
    """Attention of each slot to the keys that its group shows it, by torch's kernels for a GPU."""
    parts = []
    for g in groups:
        q, k, v = q_BhLd[:, :, g.start : g.end], k_BhLd[:, :, : g.end], v_BhLd[:, :, : g.end]
        parts.append(F.scaled_dot_product_attention(q, k, v, attn_mask=g.mask(q.dtype), scale=scale))
    return torch.cat(parts, 2)


def grouped_attention(
    q_BhLd: Tensor, k_BhLd: Tensor, v_BhLd: Tensor, groups: tuple[Group, ...], *, causal: bool, scale: float
) -> Tensor:
    """Attention of each slot to the keys that its group shows it. causal: each slot has its own step."""
    few = q_BhLd.shape[1] * sum(group.pairs for group in groups) <= _KEPT
    kind = ProductAttention if q_BhLd.dtype == torch.bfloat16 and few else FlashAttention
    calls = (Group(0, q_BhLd.shape[2], causal=True),) if causal and kind is FlashAttention else groups
    out_BhLd: Tensor = kind.apply(q_BhLd, k_BhLd, v_BhLd, calls, scale)
    return out_BhLd


class ProductAttention(torch.autograd.Function):
    """``apply(q_BhLd, k_BhLd, v_BhLd, groups, scale)`` in bfloat16, as large matrix products, group by group.

    Processors have instructions for these that torch's flash attention does not use. Logits are in float32, since those of
    cosine attention (VAR) reach 100, where bfloat16 rounds to halves. The probabilities are kept for the backward pass,
    with all heads of all samples (N) in one dimension.
    """

    @staticmethod
    def forward(
        ctx: Any, q_BhLd: Tensor, k_BhLd: Tensor, v_BhLd: Tensor, groups: tuple[Group, ...], scale: float
    ) -> Tensor:
        q_NLd, k_NLd, v_NLd = (x_BhLd.contiguous().flatten(0, 1) for x_BhLd in (q_BhLd, k_BhLd, v_BhLd))
        wide_q_NLd, wide_k_NLd = q_NLd.float() * scale, k_NLd.float()
        out_NLd, kept = torch.empty_like(q_NLd), []
        with full_precision(q_NLd):  # autocast would round the logits
            for queries, keys, mask_qk in _blocks(groups, len(q_NLd)):
                logits_Nqk = torch.bmm(wide_q_NLd[queries], wide_k_NLd[keys].mT)
                if mask_qk is not None:
                    logits_Nqk.add_(mask_qk)
                p_Nqk = logits_Nqk.softmax(2).to(q_NLd.dtype)
                out_NLd[queries] = _product(p_Nqk, v_NLd[keys])
                if any(ctx.needs_input_grad):
                    kept.append(p_Nqk)
        ctx.groups, ctx.scale = groups, scale
        ctx.save_for_backward(q_NLd, k_NLd, v_NLd, *kept)
        return out_NLd.unflatten(0, q_BhLd.shape[:2])

    @staticmethod
    def backward(ctx: Any, grad_BhLd: Tensor) -> tuple[Tensor | None, ...]:
        q_NLd, k_NLd, v_NLd, *kept = ctx.saved_tensors
        grad_NLd = grad_BhLd.contiguous().flatten(0, 1)
        dq_NLd = torch.empty_like(q_NLd)
        dk_NLd, dv_NLd = (torch.zeros_like(x_NLd, dtype=torch.float32) for x_NLd in (k_NLd, v_NLd))
        for (queries, keys, _), p_Nqk in zip(_blocks(ctx.groups, len(q_NLd)), kept, strict=True):
            grad = grad_NLd[queries]
            dv_NLd[keys] += _product(p_Nqk.mT, grad)
            ds_Nqk = torch._softmax_backward_data(_product(grad, v_NLd[keys].mT), p_Nqk, 2, p_Nqk.dtype)
            dk_NLd[keys] += _product(ds_Nqk.mT, q_NLd[queries])
            dq_NLd[queries] = _product(ds_Nqk, k_NLd[keys])
        if ctx.scale != 1:
            dq_NLd, dk_NLd = dq_NLd.mul_(ctx.scale), dk_NLd.mul_(ctx.scale)
        shape, dtype = grad_BhLd.shape[:2], grad_BhLd.dtype
        return *(x_NLd.to(dtype).unflatten(0, shape) for x_NLd in (dq_NLd, dk_NLd, dv_NLd)), None, None


def _product(a_Nij: Tensor, b_Njk: Tensor) -> Tensor:
    """The matrix products, in the type of their factors."""
    with full_precision(a_Nij):
        return torch.bmm(*widened(a_Nij, b_Njk)).to(a_Nij.dtype)


class FlashAttention(torch.autograd.Function):
    """``apply(q_BhLd, k_BhLd, v_BhLd, calls, scale)``: torch's flash attention (Dao et al. 2022), call by call."""

    @staticmethod
    def forward(
        ctx: Any, q_BhLd: Tensor, k_BhLd: Tensor, v_BhLd: Tensor, calls: tuple[Group, ...], scale: float
    ) -> Tensor:
        ctx.calls, ctx.scale, parts = calls, scale, []
        for g in calls:
            q, k, v = q_BhLd[:, :, g.start : g.end], k_BhLd[:, :, : g.end], v_BhLd[:, :, : g.end]
            q, k, v = widened(q, k, v)
            parts.append(_flash(q, k, v, 0.0, g.causal, attn_mask=g.mask(q.dtype), scale=scale))
        # torch's layout of the result, (B, L, h, d) in memory
        out_BhLd = _joined([out.transpose(1, 2) for out, _ in parts], 1).transpose(1, 2).to(q_BhLd.dtype)
        lse_BhL = _joined([lse for _, lse in parts], 2)
        ctx.save_for_backward(q_BhLd, k_BhLd, v_BhLd, out_BhLd, lse_BhL)
        return out_BhLd

    @staticmethod
    def backward(ctx: Any, grad_BhLd: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, lse_BhL = ctx.saved_tensors
        grad, q, k, v, out = widened(grad_BhLd, *tensors)
        made = _flash_gradients(grad, q, k, v, out, lse_BhL, ctx.calls, ctx.scale)
        return *(gradient.to(grad_BhLd.dtype) for gradient in made), None, None


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return torch.cat(parts, dim) if len(parts) > 1 else parts[0]


def _blocks(groups: tuple[Group, ...], heads: int) -> Iterator[tuple[_Part, _Part, Tensor | None]]:
    """Where the queries and the keys of a few heads of a group are, and its mask."""
    for g in groups:
        step = max(1, _PAIRS // g.pairs)
        for few in (slice(first, first + step) for first in range(0, heads, step)):
            yield (few, slice(g.start, g.end)), (few, slice(0, g.end)), g.mask_qk


def attention_of_bfloat16(q_BhLd: Tensor, k_BhLd: Tensor, v_BhLd: Tensor, scale: float) -> Tensor:
    """Attention of all slots to all keys; of few slots in float32, which there takes a fourth of the time."""
    dtype = q_BhLd.dtype if q_BhLd.shape[2] > FEW and not emulates_bfloat16(q_BhLd) else torch.float32
    qkv = (x_BhLd.to(dtype) for x_BhLd in (q_BhLd, k_BhLd, v_BhLd))
    out_BhLd: Tensor = _flash(*qkv, scale=scale)[0]  # autocast would cast what it calls by name back
    return out_BhLd.to(q_BhLd.dtype)


def _flash_gradients(
    grad_BhLd: Tensor,
    q_BhLd: Tensor,
    k_BhLd: Tensor,
    v_BhLd: Tensor,
    out_BhLd: Tensor,
    lse_BhL: Tensor,
    calls: tuple[Group, ...],
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    if len(calls) == 1:
        (g,) = calls
        rest = {"attn_mask": g.mask(q_BhLd.dtype), "scale": scale}
        whole: tuple[Tensor, Tensor, Tensor] = _flash_backward(
            grad_BhLd, q_BhLd, k_BhLd, v_BhLd, out_BhLd, lse_BhL, 0.0, g.causal, **rest
        )
        return whole
    dq_BhLd, dk_BhLd, dv_BhLd = torch.empty_like(q_BhLd), torch.zeros_like(k_BhLd), torch.zeros_like(v_BhLd)
    for g in calls:
        grad, q, out, lse = (x[:, :, g.start : g.end] for x in (grad_BhLd, q_BhLd, out_BhLd, lse_BhL))
        k, v = k_BhLd[:, :, : g.end], v_BhLd[:, :, : g.end]
        dq, dk, dv = _flash_backward(grad, q, k, v, out, lse, 0.0, g.causal, attn_mask=g.mask(q.dtype), scale=scale)
        dq_BhLd[:, :, g.start : g.end] = dq
        dk_BhLd[:, :, : g.end] += dk
        dv_BhLd[:, :, : g.end] += dv
    return dq_BhLd, dk_BhLd, dv_BhLd
