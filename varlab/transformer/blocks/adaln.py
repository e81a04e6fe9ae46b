"""VAR's blocks: the class modulates each LayerNorm and gates each branch (DiT's AdaLN, Peebles & Xie 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varlab.transformer.attention import Attention
from varlab.transformer.blocks.drops import Drop, Kept, kept
from varlab.transformer.blocks.mlp import mlp
from varlab.transformer.blocks.modulation import modulated, modulation, plus_product
from varlab.transformer.blocks.residual import ResidualBlock
from varlab.transformer.context import HEAD, Context
from varlab.types import VarlabError


class AdaLNBlock(ResidualBlock):
    """VAR's block: the class modulates each LayerNorm and gates each branch (DiT's AdaLN-zero, Peebles & Xie 2023).

    x + γ·f(norm(x)·(1 + scale) + shift), with γ1, γ2, scale1, scale2, shift1, shift2 from SiLU → Linear(D, 6D).
    """

    shares_modulation = False

    def __init__(
        self,
        *,
        width: int,
        heads: int,
        layer: int,
        drop_path: float,
        mlp_ratio: float = 4.0,
        qk_norm: bool = True,
        attention_scale: float = 0.25,
    ):
        super().__init__()
        self.layer, self.drop = layer, Drop(drop_path)
        self.attention = Attention(width=width, heads=heads, qk_norm=qk_norm, scale=attention_scale, bias="no_key")
        self.mlp = mlp(width, mlp_ratio, "tanh")
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self._own_modulation(width)

    def _own_modulation(self, width: int) -> None:
        self.modulate = modulation(width, 6)

    def _modulation(self, context: Context) -> Tensor:
        """(B, 1, 6, D). The condition stays the same over the steps of a sample, so a cache keeps it."""

        def make() -> Tensor:
            return self.modulate(F.silu(context.cond_BD)).view(len(context.cond_BD), 1, 6, -1)

        return make() if context.cache is None else context.cache.modulated(self.layer, make)

    def given(self, context: Context) -> tuple[Tensor, ...]:
        return self._modulation(context).unbind(2)

    def queries(self, x_BLD: Tensor, given: tuple[Tensor, ...], rotary_2B1Ld: Tensor | None) -> tuple[Tensor, ...]:
        _, _, scale1, _, shift1, _ = given
        return self.attention.project(modulated(self.norm, x_BLD, scale1, shift1), rotary_2B1Ld)

    def finished(
        self, x_BLD: Tensor, attended_BLD: Tensor, given: tuple[Tensor, ...], drawn: Sequence[Sequence[Kept]]
    ) -> Tensor:
        gamma1, gamma2, _, scale2, _, shift2 = given
        x_BLD = plus_product(x_BLD, attended_BLD, kept(gamma1, drawn[0]))
        branch_BLD = self.mlp(modulated(self.norm, x_BLD, scale2, shift2))
        return plus_product(x_BLD, branch_BLD, kept(gamma2, drawn[1]))

    @torch.no_grad()
    def init_modulation(self, weight: float, gamma: float) -> None:
        """VAR's recipe: the weights times ``weight``, those that make γ times ``gamma``; no bias."""
        width = self.modulate.in_features
        self.modulate.weight[2 * width :].mul_(weight)
        self.modulate.weight[: 2 * width].mul_(gamma)
        self.modulate.bias.zero_()


class SharedAdaLNBlock(AdaLNBlock):
    """VAR's block of the 512-pixel model: one Linear for all blocks (the transformer's), plus an offset of its own."""

    shares_modulation = True

    def _own_modulation(self, width: int) -> None:
        self.offset_116D = nn.Parameter(torch.randn(1, 1, 6, width) / math.sqrt(width))

    def _modulation(self, context: Context) -> Tensor:
        if context.shared_B16D is None:
            raise VarlabError("SharedAdaLNBlock needs a transformer that makes the shared modulation.")
        return context.shared_B16D + self.offset_116D

    @torch.no_grad()
    def init_modulation(self, weight: float, gamma: float) -> None:
        """VAR's recipe, applied to the offsets."""
        self.offset_116D[:, :, 2:].mul_(weight)
        self.offset_116D[:, :, :2].mul_(gamma)


class AdaLNHeadNorm(nn.Module):
    """The LayerNorm before the head, modulated by scale and shift from the condition."""

    def __init__(self, *, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6, elementwise_affine=False)
        self.modulate = modulation(width, 2)

    def forward(self, x_BLD: Tensor, context: Context) -> Tensor:
        def make() -> Tensor:
            return self.modulate(F.silu(context.cond_BD)).view(len(context.cond_BD), 1, 2, -1)

        scale, shift = (make() if context.cache is None else context.cache.modulated(HEAD, make)).unbind(2)
        return plus_product(shift, self.norm(x_BLD), 1 + scale)

    @torch.no_grad()
    def init_modulation(self, weight: float, gamma: float) -> None:
        """Multiply the weights by ``weight``; this norm has no γ."""
        self.modulate.weight.mul_(weight)
        self.modulate.bias.zero_()
