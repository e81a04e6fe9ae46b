"""Block-causal self-attention. The only mask rule: slot i sees slot j iff step[j] <= step[i]."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varlab.processor import hardware_precision, widened
from varlab.transformer.cast_linear import CastLinear, Linear, linear
from varlab.transformer.rotary import rotate
from varlab.transformer.step_groups import (
    Group,
    attention_of_bfloat16,
    grouped_attention,
    sliced_attention,
    step_groups,
)
from varlab.types import VarlabError

if TYPE_CHECKING:
    from varlab.transformer.context import Context

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Visible:
    """Which of all slots so far the new slots may see.

    ``allowed_qk`` is None if ``causal`` or "all" gives the same, or if there are ``groups`` of slots that see the same.
    """

    allowed_qk: Tensor | None
    causal: bool
    groups: tuple[Group, ...] = ()

    @staticmethod
    def of(new_L: Tensor, all_L: Tensor, device: torch.device = _CPU, *, sliced: bool = False) -> Visible:
        """From the steps of the new slots and those of all slots up to and including them, both on the CPU.

        device: of the attention, where the masks will lie. sliced: by groups on a GPU, too, where they are faster only when
        compiled. The same steps come again and again, so what they show is kept.
        """
        whole = len(new_L) == len(all_L)
        return _visible(tuple(new_L.tolist()), None if whole else tuple(all_L.tolist()), device, sliced)


@lru_cache(maxsize=64)
@torch.inference_mode(False)  # a later training may keep a mask for its backward pass
def _visible(new: tuple[int, ...], before: tuple[int, ...] | None, device: torch.device, sliced: bool) -> Visible:
    """before: the steps of all slots if there are more than the new ones."""
    new_L = torch.tensor(new)
    all_L, whole = (new_L, True) if before is None else (torch.tensor(before), False)
    causal = whole and len(new_L) > 1 and bool((new_L[1:] > new_L[:-1]).all())
    grouped = whole and (device.type == "cpu" or (sliced and not causal))
    groups = step_groups(new_L, device) if grouped else ()
    if causal or groups:
        return Visible(None, causal, groups)
    allowed_qk = all_L[None, :] <= new_L[:, None]
    return Visible(None if bool(allowed_qk.all()) else allowed_qk.to(device), causal)


EVERYTHING = Visible(None, causal=False)
"""All new slots see all slots, as at a step of sampling."""


def normalised(x_BhLd: Tensor, norm_h11: Tensor | None = None) -> Tensor:
    """Vectors divided by their L2 norm, then multiplied by ``norm_h11``, in their own type."""
    one = torch.ones(1, 1, 1, device=x_BhLd.device)
    out_BhLd: Tensor = Normalised.apply(x_BhLd, one if norm_h11 is None else norm_h11)
    return out_BhLd


class Normalised(torch.autograd.Function):
    """``normalised``: computed in float32 or wider, but only the rounded result is kept for the backward pass.

    Of narrower types, it lies in contiguous memory, as the matrix products of attention take it.
    """

    @staticmethod
    def forward(ctx: Any, x_BhLd: Tensor, norm_h11: Tensor) -> Tensor:
        wide_BhLd = _wide(x_BhLd)
        rate_BhL1 = norm_h11 / torch.linalg.vector_norm(wide_BhLd, dim=-1, keepdim=True).clamp_min_(1e-12)
        out_BhLd = _times(wide_BhLd, rate_BhL1, copy=_is_narrow(x_BhLd)).to(x_BhLd.dtype)
        ctx.save_for_backward(out_BhLd, rate_BhL1, norm_h11)
        return out_BhLd

    @staticmethod
    def backward(ctx: Any, grad_BhLd: Tensor) -> tuple[Tensor, Tensor]:
        out_BhLd, rate_BhL1, norm_h11 = ctx.saved_tensors
        along_BhL1 = (grad_BhLd * out_BhLd).sum(-1, keepdim=True, dtype=rate_BhL1.dtype) / norm_h11
        dx_BhLd = _times(_wide(grad_BhLd), rate_BhL1, copy=_is_narrow(grad_BhLd))
        dx_BhLd.addcmul_(_wide(out_BhLd), along_BhL1 * rate_BhL1 / norm_h11, value=-1)
        return dx_BhLd.to(grad_BhLd.dtype), along_BhL1.sum_to_size(norm_h11.shape)


def _wide(x_BhLd: Tensor) -> Tensor:
    """The tensor, or a contiguous copy in float32 of a narrower one."""
    # in one call, the copy would take three times as long
    return x_BhLd.contiguous().float() if _is_narrow(x_BhLd) else x_BhLd


def _is_narrow(x_BhLd: Tensor) -> bool:
    return x_BhLd.element_size() < 4


def _times(x_BhLd: Tensor, rate_BhL1: Tensor, *, copy: bool) -> Tensor:
    """The product, in the memory of x if that is a copy."""
    return x_BhLd.mul_(rate_BhL1) if copy else x_BhLd * rate_BhL1


class Attention(nn.Module):
    """Multi-head self-attention over x_BLD.

    qk_norm: queries and keys are L2-normalised and scaled by a learned exp(s) per head, s ≤ log 100 (VAR's attention
    normalisation). Otherwise the softmax scale is ``scale`` / √(head width); VAR without normalisation has 0.25, GPT-2 1.
    bias: "all", "no_key" (VAR) or "none" (LLaMA). kv_heads: keys and values shared by groups of heads (GQA, Ainslie et
    al. 2023); None: as many as heads.
    """

    def __init__(self, *, width: int, heads: int, qk_norm: bool, scale: float, bias: str, kv_heads: int | None = None):
        super().__init__()
        self.heads, self.head_dim, self.kv_heads = heads, width // heads, kv_heads or heads
        if heads % self.kv_heads:
            raise VarlabError(f"Transformer heads {heads} must be a multiple of kv_heads {self.kv_heads}.")
        inner = self.kv_heads * self.head_dim
        self.qkv = nn.Linear(width, width + 2 * inner, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width)) if bias != "none" else None
        self.v_bias = nn.Parameter(torch.zeros(inner)) if bias != "none" else None
        self.k_bias: Tensor
        if bias == "all":
            self.k_bias = nn.Parameter(torch.zeros(inner))
        else:
            self.register_buffer("k_bias", torch.zeros(inner), persistent=False)
        self.proj = Linear(width, width, bias=bias != "none")
        self.log_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(4.0))) if qk_norm else None
        self.softmax_scale = 1.0 if qk_norm else scale / math.sqrt(self.head_dim)

    def qkv_bias(self) -> Tensor | None:
        """The bias of queries, keys and values, if they have one."""
        if self.q_bias is None or self.v_bias is None:
            return None
        return torch.cat([self.q_bias, self.k_bias, self.v_bias])

    def _project(self, x_BLD: Tensor, rotary_2B1Ld: Tensor | None) -> tuple[Tensor, ...]:
        """Queries, keys and values, (B, heads, L, d) each. Queries and keys are rotated together."""
        if type(self.qkv) is nn.Linear:
            qkv = linear(x_BLD, self.qkv.weight, self.qkv_bias(), wide=True)
        else:
            bias = (
                None if isinstance(self.qkv, CastLinear) else self.qkv_bias()
            )  # it has the bias, a user's layer has not
            qkv = self.qkv(x_BLD) if bias is None else self.qkv(x_BLD) + bias
        qkv_BhLd = qkv.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        if rotary_2B1Ld is None:
            return tuple(qkv_BhLd.split([self.heads, self.kv_heads, self.kv_heads], 1))
        qk_BhLd, v_BhLd = qkv_BhLd.split([self.heads + self.kv_heads, self.kv_heads], 1)
        return *rotate(qk_BhLd, rotary_2B1Ld).split([self.heads, self.kv_heads], 1), v_BhLd

    def forward(self, x_BLD: Tensor, context: Context, layer: int) -> Tensor:
        q, k, v = self.project(x_BLD, context.rotary_2B1Ld)
        if context.cache is not None:
            k, v = context.cache.extend(layer, k, v)
        return self.mixed(q, k, v, context.visible)

    def project(self, x_BLD: Tensor, rotary_2B1Ld: Tensor | None) -> tuple[Tensor, ...]:
        """q_BhLd, k_BhLd, v_BhLd of the slots."""
        q, k, v = self._project(x_BLD, rotary_2B1Ld)
        if self.log_scale is not None:
            q = normalised(q, self.log_scale.clamp_max(math.log(100.0)).exp())
            k = normalised(k)
        return q, k, v

    def mixed(self, q_BhLd: Tensor, k_BhLd: Tensor, v_BhLd: Tensor, visible: Visible) -> Tensor:
        """x_BLD of the queries' slots, from the keys and values of all slots so far."""
        if self.kv_heads < self.heads:
            k_BhLd, v_BhLd = (t.repeat_interleave(self.heads // self.kv_heads, 1) for t in (k_BhLd, v_BhLd))
        return self.proj(self._attend(q_BhLd, k_BhLd, v_BhLd, visible).transpose(1, 2).flatten(2))

    def _attend(self, q_BhLd: Tensor, k_BhLd: Tensor, v_BhLd: Tensor, visible: Visible) -> Tensor:
        if q_BhLd.dtype == torch.bfloat16 and q_BhLd.device.type == "cpu" and visible == EVERYTHING:
            return attention_of_bfloat16(q_BhLd, k_BhLd, v_BhLd, self.softmax_scale)
        if visible.groups and q_BhLd.device.type != "cpu":
            return sliced_attention(q_BhLd, k_BhLd, v_BhLd, visible.groups, scale=self.softmax_scale)
        if visible.groups:
            return grouped_attention(
                q_BhLd, k_BhLd, v_BhLd, visible.groups, causal=visible.causal, scale=self.softmax_scale
            )
        attend = partial(
            F.scaled_dot_product_attention,
            attn_mask=visible.allowed_qk,
            is_causal=visible.causal,
            scale=self.softmax_scale,
        )
        if q_BhLd.dtype != torch.bfloat16:
            return attend(q_BhLd, k_BhLd, v_BhLd)
        with hardware_precision(q_BhLd):
            return attend(*widened(q_BhLd, k_BhLd, v_BhLd)).to(q_BhLd.dtype)
