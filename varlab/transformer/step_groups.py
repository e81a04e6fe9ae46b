"""Block-causal attention without dense waste, for the CPU: each group of slots reads only the keys that it may see."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward

_ROWS = 64  # steps of fewer slots are joined: matrix products of fewer rows cost more than the masked pairs
FEW = 16
"""Slots of a step whose attention is faster in float32 on a processor, also if all else is in bfloat16."""
_PAIRS = 1 << 21  # of query and key at once in the backward pass, so that they stay in the processor's cache


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


def step_groups(step_L: Tensor) -> tuple[Group, ...]:
    """The groups of a sequence; none if its steps decrease somewhere, or if it is too short to gain from groups."""
    if len(step_L) <= _ROWS or bool((step_L[1:] < step_L[:-1]).any()):
        return ()
    bounds, start, end = [0], 0, 0
    for length in torch.unique_consecutive(step_L, return_counts=True)[1].tolist():
        if length >= _ROWS and start < end:
            bounds.append(start := end)
        end += length
        if end - start >= _ROWS:
            bounds.append(start := end)
    if start < end:
        bounds.append(end)
    return tuple(_group(step_L, start, end) for start, end in zip(bounds, bounds[1:], strict=False))


def _group(step_L: Tensor, start: int, end: int) -> Group:
    if step_L[start] == step_L[end - 1]:
        return Group(start, end)
    hidden_qk = step_L[None, :end] > step_L[start:end, None]
    return Group(start, end, torch.zeros(hidden_qk.shape).masked_fill(hidden_qk, -torch.inf))


class GroupedAttention(torch.autograd.Function):
    """``apply(q_BhLd, k_BhLd, v_BhLd, groups, causal, scale)`` → (B, h, L, d). causal: each slot has its own step.

    Both passes are torch's flash attention (Dao et al. 2022), group by group. The backward pass of bfloat16 is our own:
    it makes large matrix products, for which processors have instructions that torch's does not use.
    """

    @staticmethod
    def forward(
        ctx: Any, q_BhLd: Tensor, k_BhLd: Tensor, v_BhLd: Tensor, groups: tuple[Group, ...], causal: bool, scale: float
    ) -> Tensor:
        ctx.groups, ctx.scale = groups, scale
        ctx.calls = (Group(0, q_BhLd.shape[2], causal=True),) if causal else groups
        parts = []
        for g in ctx.calls:
            q, k, v = q_BhLd[:, :, g.start : g.end], k_BhLd[:, :, : g.end], v_BhLd[:, :, : g.end]
            parts.append(_flash(q, k, v, 0.0, g.causal, attn_mask=g.mask(q.dtype), scale=scale))
        # torch's layout of the result, (B, L, h, d) in memory
        out_BhLd = torch.cat([out.transpose(1, 2) for out, _ in parts], 1).transpose(1, 2)
        lse_BhL = torch.cat([lse for _, lse in parts], 2)
        ctx.save_for_backward(q_BhLd, k_BhLd, v_BhLd, out_BhLd, lse_BhL)
        return out_BhLd

    @staticmethod
    def backward(ctx: Any, grad_BhLd: Tensor) -> tuple[Tensor | None, ...]:
        q_BhLd, k_BhLd, v_BhLd, out_BhLd, lse_BhL = ctx.saved_tensors
        kept = (q_BhLd, k_BhLd, v_BhLd, out_BhLd, lse_BhL)
        if grad_BhLd.dtype == torch.bfloat16:
            return *_product_gradients(grad_BhLd, *kept, ctx.groups, ctx.scale), None, None, None
        return *_flash_gradients(grad_BhLd, *kept, ctx.calls, ctx.scale), None, None, None


def attention_of_bfloat16(q_BhLd: Tensor, k_BhLd: Tensor, v_BhLd: Tensor, scale: float) -> Tensor:
    """Attention of all slots to all keys. torch's kernel is slow in bfloat16: fourfold at one slot, a third at many.

    Of few slots it is computed in float32, of many as matrix products (of which each shape costs memory: its program).
    """
    if q_BhLd.shape[2] <= FEW:
        qkv = (x_BhLd.float() for x_BhLd in (q_BhLd, k_BhLd, v_BhLd))
        out_BhLd: Tensor = _flash(*qkv, scale=scale)[0]  # autocast would cast what it calls by name back
        return out_BhLd.to(q_BhLd.dtype)
    q_NLd, k_NLd, v_NLd = (x.to(q_BhLd.dtype).flatten(0, 1) for x in (q_BhLd * scale, k_BhLd, v_BhLd))
    heads = max(1, _PAIRS // (q_NLd.shape[1] * k_NLd.shape[1]))
    parts = zip(q_NLd.split(heads), k_NLd.split(heads), v_NLd.split(heads), strict=True)
    out_NLd = torch.cat([torch.bmm(torch.bmm(q, k.mT).softmax(-1), v) for q, k, v in parts])
    return out_NLd.unflatten(0, q_BhLd.shape[:2])


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
    dq_BhLd, dk_BhLd, dv_BhLd = torch.empty_like(q_BhLd), torch.zeros_like(k_BhLd), torch.zeros_like(v_BhLd)
    for g in calls:
        grad, q, out, lse = (x[:, :, g.start : g.end] for x in (grad_BhLd, q_BhLd, out_BhLd, lse_BhL))
        k, v = k_BhLd[:, :, : g.end], v_BhLd[:, :, : g.end]
        dq, dk, dv = _flash_backward(grad, q, k, v, out, lse, 0.0, g.causal, attn_mask=g.mask(q.dtype), scale=scale)
        dq_BhLd[:, :, g.start : g.end] = dq
        dk_BhLd[:, :, : g.end] += dk
        dv_BhLd[:, :, : g.end] += dv
    return dq_BhLd, dk_BhLd, dv_BhLd


def _product_gradients(
    grad_BhLd: Tensor,
    q_BhLd: Tensor,
    k_BhLd: Tensor,
    v_BhLd: Tensor,
    out_BhLd: Tensor,
    lse_BhL: Tensor,
    groups: tuple[Group, ...],
    scale: float,
) -> tuple[Tensor, ...]:
    """With N heads of all samples, and e = d + 2: see ``_with_columns``. Sums over groups are in float32."""
    delta_BhL = (grad_BhLd.float() * out_BhLd).sum(-1)
    queries = _with_columns(q_BhLd, lse_BhL / -scale), _with_columns(grad_BhLd, -delta_BhL)
    keys = tuple(F.pad(x_BhLd.flatten(0, 1), (0, 2), value=1.0) for x_BhLd in (k_BhLd, v_BhLd))
    dq_NLe = torch.empty_like(queries[0])
    dk_NLe, dv_NLe = (torch.zeros_like(x_NLe, dtype=torch.float32) for x_NLe in keys)
    for g in groups:
        step = max(1, _PAIRS // g.pairs)
        for heads in (slice(first, first + step) for first in range(0, len(dq_NLe), step)):
            q, grad = (x_NLe[heads, g.start : g.end].contiguous() for x_NLe in queries)
            k, v = (x_NLe[heads, : g.end].contiguous() for x_NLe in keys)
            p_Nqk = _probabilities(q, k, g.mask_qk, scale)
            dv_NLe[heads, : g.end] += torch.bmm(p_Nqk.mT, grad)
            ds_Nqk = torch.bmm(grad, v.mT).mul_(p_Nqk)
            dk_NLe[heads, : g.end] += torch.bmm(ds_Nqk.mT, q)
            dq_NLe[heads, g.start : g.end] = torch.bmm(ds_Nqk, k)
    shape, dtype = q_BhLd.shape[:2], q_BhLd.dtype
    dq, dk, dv = (x_NLe[:, :, :-2].to(dtype).unflatten(0, shape) for x_NLe in (dq_NLe, dk_NLe, dv_NLe))
    return (dq, dk, dv) if scale == 1 else (dq * scale, dk * scale, dv)


def _with_columns(x_BhLd: Tensor, column_BhL: Tensor) -> Tensor:
    """x_NLe: x, and a float32 column as the sum of two of x's type.

    The product with keys and two columns of ones then has the column added before it is rounded.
    """
    column_NL1 = column_BhL.flatten(0, 1)[:, :, None]
    high_NL1 = column_NL1.to(x_BhLd.dtype)
    return torch.cat([x_BhLd.flatten(0, 1), high_NL1, (column_NL1 - high_NL1).to(x_BhLd.dtype)], 2)


def _probabilities(q_Nqe: Tensor, k_Nke: Tensor, mask_qk: Tensor | None, scale: float) -> Tensor:
    """p_Nqk; q has -lse / scale in its last columns."""
    p_Nqk = torch.bmm(q_Nqe, k_Nke.mT)
    if scale != 1:
        p_Nqk.mul_(scale)
    if mask_qk is not None:
        p_Nqk.add_(mask_qk)
    return p_Nqk.exp_()
