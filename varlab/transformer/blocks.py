"""Transformer blocks. A block family is a block and the norm before the head; both see x_BLD and the condition."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varlab.rng import Stream
from varlab.transformer.attention import Attention, Cache, Visible


class Drop:
    """Stochastic depth (Huang et al. 2016): drops a sample's whole branch, in training only, addressed per sample."""

    def __init__(self, rate: float):
        self.rate = rate

    def __call__(self, branch_BLD: Tensor, rng: Stream | None, step: int) -> Tensor:
        if rng is None or self.rate == 0:
            return branch_BLD
        keep_B = rng.at(step).uniform(1).to(branch_BLD.device) >= self.rate
        return branch_BLD * keep_B[:, :, None].to(branch_BLD.dtype) / (1 - self.rate)


class Block(Protocol):
    """What the transformer asks of a block (a module made from keyword arguments width, heads, layer, drop_path)."""

    def __call__(
        self, x_BLD: Tensor, cond_BD: Tensor, visible: Visible, cache: Cache | None, rng: Stream | None
    ) -> Tensor: ...


BlockFactory = Callable[..., nn.Module]


def mlp(width: int, ratio: float, approximate: str) -> nn.Sequential:
    """Linear, GELU (``approximate``: tanh or none), Linear."""
    hidden = round(width * ratio)
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate=approximate), nn.Linear(hidden, width))


class AdaLNBlock(nn.Module):
    """VAR's block: the class modulates each LayerNorm and gates each branch (DiT's AdaLN-zero, Peebles & Xie 2023).

    x + γ·f(norm(x)·(1 + scale) + shift), with γ1, γ2, scale1, scale2, shift1, shift2 from SiLU → Linear(D, 6D).
    """

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        layer: int,
        drop_path: float,
        mlp_ratio: float,
        qk_norm: bool,
        attention_scale: float,
    ):
        super().__init__()
        self.layer, self.drop = layer, Drop(drop_path)
        self.attention = Attention(width=width, heads=heads, qk_norm=qk_norm, scale=attention_scale, key_bias=False)
        self.mlp = mlp(width, mlp_ratio, "tanh")
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulate = nn.Linear(width, 6 * width)

    def _modulation(self, cond_BD: Tensor, cache: Cache | None) -> Tensor:
        """(B, 1, 6, D). The condition stays the same over the steps of a sample, so a cache keeps it."""
        if cache is not None and self.layer in cache.modulation:
            return cache.modulation[self.layer]
        modulation = self.modulate(F.silu(cond_BD)).view(len(cond_BD), 1, 6, -1)
        if cache is not None:
            cache.modulation[self.layer] = modulation
        return modulation

    def forward(
        self, x_BLD: Tensor, cond_BD: Tensor, visible: Visible, cache: Cache | None, rng: Stream | None
    ) -> Tensor:
        gamma1, gamma2, scale1, scale2, shift1, shift2 = self._modulation(cond_BD, cache).unbind(2)
        branch = self.attention(self.norm(x_BLD) * (1 + scale1) + shift1, visible, cache, self.layer)
        x_BLD = x_BLD + self.drop(branch * gamma1, rng, 2 * self.layer)
        branch = self.mlp(self.norm(x_BLD) * (1 + scale2) + shift2)
        return x_BLD + self.drop(branch * gamma2, rng, 2 * self.layer + 1)

    @torch.no_grad()
    def init_modulation(self, weight: float, gamma: float) -> None:
        """VAR's recipe: the weights times ``weight``, those that make γ times ``gamma``; no bias."""
        width = self.modulate.in_features
        self.modulate.weight[2 * width :].mul_(weight)
        self.modulate.weight[: 2 * width].mul_(gamma)
        self.modulate.bias.zero_()


_HEAD = -1  # the head's place among the layers of a cache


class AdaLNHeadNorm(nn.Module):
    """The LayerNorm before the head, modulated by scale and shift from the condition."""

    def __init__(self, *, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulate = nn.Linear(width, 2 * width)

    def forward(self, x_BLD: Tensor, cond_BD: Tensor, cache: Cache | None) -> Tensor:
        made = None if cache is None else cache.modulation.get(_HEAD)
        if made is None:
            made = self.modulate(F.silu(cond_BD)).view(len(cond_BD), 1, 2, -1)
            if cache is not None:
                cache.modulation[_HEAD] = made
        scale, shift = made.unbind(2)
        return self.norm(x_BLD) * (1 + scale) + shift

    @torch.no_grad()
    def init_modulation(self, weight: float, gamma: float) -> None:
        """The weights times ``weight``; there is no γ here."""
        self.modulate.weight.mul_(weight)
        self.modulate.bias.zero_()


class GPT2Block(nn.Module):
    """GPT-2's pre-norm block, as in VQGAN's transformer: the class is known from the start token alone."""

    def __init__(self, *, width: int, heads: int, layer: int, drop_path: float, mlp_ratio: float):
        super().__init__()
        self.layer, self.drop = layer, Drop(drop_path)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width=width, heads=heads, qk_norm=False, scale=1.0, key_bias=True)
        self.mlp = mlp(width, mlp_ratio, "none")

    def forward(
        self, x_BLD: Tensor, cond_BD: Tensor, visible: Visible, cache: Cache | None, rng: Stream | None
    ) -> Tensor:
        branch = self.attention(self.norm1(x_BLD), visible, cache, self.layer)
        x_BLD = x_BLD + self.drop(branch, rng, 2 * self.layer)
        return x_BLD + self.drop(self.mlp(self.norm2(x_BLD)), rng, 2 * self.layer + 1)


class PlainHeadNorm(nn.Module):
    """An ordinary LayerNorm before the head."""

    def __init__(self, *, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width)

    def forward(self, x_BLD: Tensor, cond_BD: Tensor, cache: Cache | None) -> Tensor:
        return self.norm(x_BLD)
