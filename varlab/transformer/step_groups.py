"""Block-causal attention without dense waste, for the CPU: each group of slots reads only the keys that it may see."""

from __future__ import annotations

from collections.abc import Iterator
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
_PAIRS = 1 << 19  # of query and key at once, so that they stay in the processor's cache
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


def step_groups(step_L: Tensor) -> tuple[Group, ...]:
    """The groups of a sequence, a short one in a single group; none for a single step, or if steps decrease somewhere."""
    if step_L[0] == step_L[-1] or bool((step_L[1:] < step_L[:-1]).any()):
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


def grouped_attention(
    q_BhLd: Tensor, k_BhLd: Tensor, v_BhLd: Tensor, groups: tuple[Group, ...], *, causal: bool, scale: float
) -> Tensor:
    """Attention of each slot to the keys that its group shows it. causal: each slot has its own step."""
    calls = (Group(0, q_BhLd.shape[2], causal=True),) if causal else groups
    out_BhLd: Tensor = GroupedAttention.apply(q_BhLd, k_BhLd, v_BhLd, calls, groups, scale)
    return out_BhLd


class GroupedAttention(torch.autograd.Function):
    """``apply(q_BhLd, k_BhLd, v_BhLd, calls, groups, scale)``: torch's flash attention (Dao et al. 2022), call by call.

    The backward pass of bfloat16 is our own, group by group: it makes large matrix products, for which processors have
    instructions that torch's does not use.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q_BhLd: Tensor,
        k_BhLd: Tensor,
        v_BhLd: Tensor,
        calls: tuple[Group, ...],
        groups: tuple[Group, ...],
        scale: float,
    ) -> Tensor:
        ctx.calls, ctx.groups, ctx.scale = calls, groups, scale
        parts = []
        for g in calls:
            q, k, v = q_BhLd[:, :, g.start : g.end], k_BhLd[:, :, : g.end], v_BhLd[:, :, : g.end]
            parts.append(_flash(q, k, v, 0.0, g.causal, attn_mask=g.mask(q.dtype), scale=scale))
        # torch's layout of the result, (B, L, h, d) in memory
        out_BhLd = torch.cat([out.transpose(1, 2) for out, _ in parts], 1).transpose(1, 2)
        lse_BhL = torch.cat([lse for _, lse in parts], 2)
        kept = () if q_BhLd.dtype == torch.bfloat16 else (out_BhLd,)
        ctx.save_for_backward(q_BhLd, k_BhLd, v_BhLd, lse_BhL, *kept)
        return out_BhLd

    @staticmethod
    def backward(ctx: Any, grad_BhLd: Tensor) -> tuple[Tensor | None, ...]:
        q_BhLd, k_BhLd, v_BhLd, lse_BhL, *kept = ctx.saved_tensors
        if not kept:
            gradients = _product_gradients(grad_BhLd, q_BhLd, k_BhLd, v_BhLd, lse_BhL, ctx.groups, ctx.scale)
        else:
            (out_BhLd,) = kept
            gradients = _flash_gradients(grad_BhLd, q_BhLd, k_BhLd, v_BhLd, out_BhLd, lse_BhL, ctx.calls, ctx.scale)
        return *gradients, None, None, None


def _product_gradients(
    grad_BhLd: Tensor,
    q_BhLd: Tensor,
    k_BhLd: Tensor,
    v_BhLd: Tensor,
    lse_BhL: Tensor,
    groups: tuple[Group, ...],
    scale: float,
) -> tuple[Tensor, ...]:
    """With N heads of all samples, and e = d + 2: see ``_less_lse``. Sums over groups are in float32."""
    v_NLd, grad_NLd = v_BhLd.flatten(0, 1), grad_BhLd.flatten(0, 1)
    q_NLe, k_NLe = _less_lse(q_BhLd.flatten(0, 1), lse_BhL.flatten(0, 1) / -scale), _ones(k_BhLd.flatten(0, 1))
    dq_NLe = torch.empty_like(q_NLe)
    dk_NLe, dv_NLd = (torch.zeros_like(x_NL, dtype=torch.float32) for x_NL in (k_NLe, v_NLd))
    for queries, keys, mask_qk in _blocks(groups, len(q_NLe)):
        q, grad = q_NLe[queries].contiguous(), grad_NLd[queries].contiguous()
        k, v = k_NLe[keys].contiguous(), v_NLd[keys].contiguous()
        p_Nqk = _probabilities(q, k, mask_qk, scale)
        dv_NLd[keys] += torch.bmm(p_Nqk.mT, grad)
        ds_Nqk = torch._softmax_backward_data(torch.bmm(grad, v.mT), p_Nqk, 2, p_Nqk.dtype)
        dk_NLe[keys] += torch.bmm(ds_Nqk.mT, q)
        dq_NLe[queries] = torch.bmm(ds_Nqk, k)
    dq_NLd, dk_NLd = dq_NLe[:, :, :-2], dk_NLe[:, :, :-2]
    if scale != 1:
        dq_NLd, dk_NLd = dq_NLd.mul_(scale), dk_NLd.mul_(scale)
    shape, dtype = grad_BhLd.shape[:2], grad_BhLd.dtype
    return tuple(x_NLd.to(dtype).unflatten(0, shape) for x_NLd in (dq_NLd, dk_NLd, dv_NLd))


def _blocks(groups: tuple[Group, ...], heads: int) -> Iterator[tuple[_Part, _Part, Tensor | None]]:
    """Where the queries and the keys of a few heads of a group are, and its mask."""
    for g in groups:
        step = max(1, _PAIRS // g.pairs)
        for few in (slice(first, first + step) for first in range(0, heads, step)):
            yield (few, slice(g.start, g.end)), (few, slice(0, g.end)), g.mask_qk


def _less_lse(q_NLd: Tensor, lse_NL: Tensor) -> Tensor:
    """q_NLe: queries, and a float32 number as the sum of two of their type.

    The product with keys and ``_ones`` then has the number added before it is rounded: probabilities near 1 have logits
    near 0, and these are rounded least.
    """
    lse_NL1 = lse_NL[:, :, None]
    high_NL1 = lse_NL1.to(q_NLd.dtype)
    return torch.cat([q_NLd, high_NL1, (lse_NL1 - high_NL1).to(q_NLd.dtype)], 2)


def _ones(k_NLd: Tensor) -> Tensor:
    """k_NLe: keys, and 1 twice."""
    return F.pad(k_NLd, (0, 2), value=1.0)


def _probabilities(q_NLe: Tensor, k_NLe: Tensor, mask_qk: Tensor | None, scale: float) -> Tensor:
    """p_Nqk, in the type of the queries."""
    logits_Nqk = torch.bmm(q_NLe, k_NLe.mT)
    if scale != 1:
        logits_Nqk.mul_(scale)
    if mask_qk is not None:
        logits_Nqk.add_(mask_qk.to(logits_Nqk.dtype))  # add_ would cast it for each head
    return logits_Nqk.exp_()


def attention_of_bfloat16(q_BhLd: Tensor, k_BhLd: Tensor, v_BhLd: Tensor, scale: float) -> Tensor:
    """Attention of all slots to all keys; of few slots in float32, which there takes a fourth of the time."""
    dtype = q_BhLd.dtype if q_BhLd.shape[2] > FEW else torch.float32
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
