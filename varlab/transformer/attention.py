"""Block-causal self-attention. The only mask rule: slot i sees slot j iff step[j] <= step[i]."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class Visible:
    """What the new slots may see of all slots so far. ``allowed_qk`` is None where a faster rule says the same."""

    allowed_qk: Tensor | None
    causal: bool

    def to(self, device: torch.device) -> Visible:
        """The same on the device that attends."""
        return self if self.allowed_qk is None else Visible(self.allowed_qk.to(device), self.causal)

    @staticmethod
    def of(new_L: Tensor, all_L: Tensor) -> Visible:
        """From the steps of the new slots and those of all slots up to and including them, both on the CPU."""
        if len(new_L) == len(all_L) and bool((new_L[1:] > new_L[:-1]).all()):
            return Visible(None, causal=len(new_L) > 1)
        allowed_qk = all_L[None, :] <= new_L[:, None]
        return Visible(None if bool(allowed_qk.all()) else allowed_qk, causal=False)


@dataclass
class Cache:
    """Keys and values of the slots seen so far, layer by layer; passed in by the sampler, filled by the transformer.

    length: slots that will ever come, so that each layer allocates once.
    """

    length: int
    step_L: Tensor | None = None
    modulation: dict[int, Tensor] = field(default_factory=dict)  # AdaLN's, constant over a sample's steps
    _layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _filled: dict[int, int] = field(default_factory=dict)

    def extend(self, layer: int, k_BhLd: Tensor, v_BhLd: Tensor) -> tuple[Tensor, Tensor]:
        """Append one layer's keys and values; returns all so far."""
        if layer not in self._layers:
            shape = (*k_BhLd.shape[:2], self.length, k_BhLd.shape[3])
            self._layers[layer] = (k_BhLd.new_empty(shape), v_BhLd.new_empty(shape))
        keys, values = self._layers[layer]
        start = self._filled.get(layer, 0)
        end = start + k_BhLd.shape[2]
        keys[:, :, start:end], values[:, :, start:end] = k_BhLd, v_BhLd
        self._filled[layer] = end
        return keys[:, :, :end], values[:, :, :end]

    def see(self, step_L: Tensor) -> Tensor:
        """Note the steps of the new slots; returns those of all so far."""
        self.step_L = step_L if self.step_L is None else torch.cat([self.step_L, step_L])
        return self.step_L


class Attention(nn.Module):
    """Multi-head self-attention over x_BLD.

    qk_norm: queries and keys are L2-normalised and scaled by a learned exp(s) per head, s ≤ log 100 (VAR's attention
    normalisation). Otherwise the softmax scale is ``scale`` / √(head width); VAR without normalisation has 0.25, GPT-2 1.
    key_bias: VAR has none.
    """

    def __init__(self, *, width: int, heads: int, qk_norm: bool, scale: float, key_bias: bool):
        super().__init__()
        self.heads, self.head_dim = heads, width // heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias, self.v_bias = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        if key_bias:
            self.k_bias = nn.Parameter(torch.zeros(width))
        else:
            self.register_buffer("k_bias", torch.zeros(width), persistent=False)
        self.proj = nn.Linear(width, width)
        self.log_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(4.0))) if qk_norm else None
        self.softmax_scale = 1.0 if qk_norm else scale / math.sqrt(self.head_dim)

    def forward(self, x_BLD: Tensor, visible: Visible, cache: Cache | None, layer: int) -> Tensor:
        B, L, D = x_BLD.shape
        bias = torch.cat([self.q_bias, self.k_bias, self.v_bias])
        qkv = F.linear(x_BLD, self.qkv.weight, bias).view(B, L, 3, self.heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        if self.log_scale is not None:
            q = F.normalize(q, dim=-1).mul(self.log_scale.clamp_max(math.log(100.0)).exp()).to(v.dtype)
            k = F.normalize(k, dim=-1).to(v.dtype)
        if cache is not None:
            k, v = cache.extend(layer, k, v)
        attended = F.scaled_dot_product_attention(
            q, k, v, attn_mask=visible.allowed_qk, is_causal=visible.causal, scale=self.softmax_scale
        )
        return self.proj(attended.transpose(1, 2).reshape(B, L, D))
