"""Block-causal self-attention. The only mask rule: slot i sees slot j iff step[j] <= step[i]."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varlab.transformer.cast_linear import CastLinear
from varlab.transformer.rotary import rotate
from varlab.transformer.step_groups import Group, attention_of_bfloat16, grouped_attention, step_groups
from varlab.types import VarlabError

if TYPE_CHECKING:
    from varlab.transformer.context import Context

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Visible:
    """Which of all slots so far the new slots may see.

    ``allowed_qk`` is None if ``causal`` or "all" gives the same, or if there are ``groups``, which the CPU prefers.
    """

    allowed_qk: Tensor | None
    causal: bool
    groups: tuple[Group, ...] = ()

    @staticmethod
    def of(new_L: Tensor, all_L: Tensor, device: torch.device = _CPU) -> Visible:
        """From the steps of the new slots and those of all slots up to and including them, both on the CPU.

        device: of the attention, where the mask will lie.
        """
        whole = len(new_L) == len(all_L)
        causal = whole and len(new_L) > 1 and bool((new_L[1:] > new_L[:-1]).all())
        groups = step_groups(new_L) if whole and device.type == "cpu" else ()
        if causal or groups:
            return Visible(None, causal, groups)
        allowed_qk = all_L[None, :] <= new_L[:, None]
        return Visible(None if bool(allowed_qk.all()) else allowed_qk.to(device), causal)


EVERYTHING = Visible(None, causal=False)
"""All new slots see all slots, as at a step of sampling."""


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
        self.proj = nn.Linear(width, width, bias=bias != "none")
        self.log_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(4.0))) if qk_norm else None
        self.softmax_scale = 1.0 if qk_norm else scale / math.sqrt(self.head_dim)

    def qkv_bias(self) -> Tensor | None:
        """The bias of queries, keys and values, if they have one."""
        if self.q_bias is None or self.v_bias is None:
            return None
        return torch.cat([self.q_bias, self.k_bias, self.v_bias])

    def _project(self, x_BLD: Tensor) -> tuple[Tensor, ...]:
        """Queries, keys and values, (B, heads, L, d) each."""
        cast = isinstance(self.qkv, CastLinear)
        qkv = self.qkv(x_BLD) if cast else F.linear(x_BLD, self.qkv.weight, self.qkv_bias())
        qkv = qkv.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
        return qkv.split([self.heads, self.kv_heads, self.kv_heads], 1)

    def forward(self, x_BLD: Tensor, context: Context, layer: int) -> Tensor:
        q, k, v = self._project(x_BLD)
        if self.log_scale is not None:
            q = F.normalize(q, dim=-1).mul(self.log_scale.clamp_max(math.log(100.0)).exp()).to(v.dtype)
            k = F.normalize(k, dim=-1).to(v.dtype)
        if context.rotary_BLd2 is not None:
            q, k = rotate(q, context.rotary_BLd2), rotate(k, context.rotary_BLd2)
        if context.cache is not None:
            k, v = context.cache.extend(layer, k, v)
        if self.kv_heads < self.heads:
            k, v = (t.repeat_interleave(self.heads // self.kv_heads, 1) for t in (k, v))
        return self.proj(self._attend(q, k, v, context.visible).transpose(1, 2).flatten(2))

    def _attend(self, q_BhLd: Tensor, k_BhLd: Tensor, v_BhLd: Tensor, visible: Visible) -> Tensor:
        if q_BhLd.dtype == torch.bfloat16 and q_BhLd.device.type == "cpu" and visible == EVERYTHING:
            return attention_of_bfloat16(q_BhLd, k_BhLd, v_BhLd, self.softmax_scale)
        k_BhLd, v_BhLd = k_BhLd.to(q_BhLd.dtype), v_BhLd.to(q_BhLd.dtype)  # a cache may be of another type
        if visible.groups:
            return grouped_attention(
                q_BhLd, k_BhLd, v_BhLd, visible.groups, causal=visible.causal, scale=self.softmax_scale
            )
        return F.scaled_dot_product_attention(
            q_BhLd,
            k_BhLd,
            v_BhLd,
            attn_mask=visible.allowed_qk,
            is_causal=visible.causal,
            scale=self.softmax_scale,
        )
