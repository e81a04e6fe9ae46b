"""VAR's blocks: the class modulates each LayerNorm and gates each branch (DiT's AdaLN, Peebles & Xie 2023)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varlab.processor import on_processor
from varlab.transformer.attention import Attention
from varlab.transformer.blocks.drops import Drop, Kept, kept
from varlab.transformer.blocks.mlp import mlp
from varlab.transformer.blocks.residual import ResidualBlock
from varlab.transformer.cast_linear import Linear
from varlab.transformer.context import HEAD, Context
from varlab.types import VarlabError

_LONG = 1 << 16  # numbers of a sample from which on a single pass over each is faster


def modulation(width: int, parts: int) -> Linear:
    """Makes ``parts`` vectors of the width from SiLU of the condition."""
    return Linear(width, parts * width)


def modulated(norm: nn.LayerNorm, x_BLD: Tensor, scale_B1D: Tensor, shift_B1D: Tensor) -> Tensor:
    """norm(x)·(1 + scale) + shift. Of long samples on a processor in a single pass: under autocast, in its type, or without
    gradients."""
    if on_processor(x_BLD) and x_BLD[0].numel() >= _LONG:
        if torch.is_autocast_enabled("cpu"):
            out_BLD: Tensor = ModulatedNorm.apply(x_BLD, scale_B1D.float(), shift_B1D.float(), norm.eps)
            return out_BLD
        if not torch.is_grad_enabled() and x_BLD.dtype == scale_B1D.dtype:
            return _modulated_samples(x_BLD, scale_B1D, shift_B1D, norm.eps)
    return plus_product(shift_B1D, norm(x_BLD), 1 + scale_B1D)


def _modulated_samples(x_BLD: Tensor, scale_B1D: Tensor, shift_B1D: Tensor, eps: float) -> Tensor:
    """torch's LayerNorm of each sample, with the sample's own gain and bias."""
    out_BLD, gain_BD = torch.empty_like(x_BLD), 1 + scale_B1D[:, 0]
    mean_L1, rate_L1 = x_BLD.new_empty(2, x_BLD.shape[1], 1)
    for x_LD, gain_D, shift_D, out_LD in zip(x_BLD, gain_BD, shift_B1D[:, 0], out_BLD, strict=True):
        torch.ops.aten.native_layer_norm.out(
            x_LD, gain_D.shape, gain_D, shift_D, eps, out0=out_LD, out1=mean_L1, out2=rate_L1
        )
    return out_BLD


def plus_product(x_BLD: Tensor, branch_BLD: Tensor, gain_B1D: Tensor) -> Tensor:
    """x + branch·gain, in one pass over tensors of one type."""
    if not x_BLD.dtype == branch_BLD.dtype == gain_B1D.dtype:
        return x_BLD + branch_BLD * gain_B1D
    out_BLD: Tensor = PlusProduct.apply(x_BLD, branch_BLD, gain_B1D)
    return out_BLD


class PlusProduct(torch.autograd.Function):
    """``plus_product``. The gradients of torch's own addcmul take another pass over the branch."""

    @staticmethod
    def forward(ctx: Any, x_BLD: Tensor, branch_BLD: Tensor, gain_B1D: Tensor) -> Tensor:
        ctx.shape = x_BLD.shape
        ctx.save_for_backward(branch_BLD, gain_B1D)
        return torch.addcmul(x_BLD, branch_BLD, gain_B1D)

    @staticmethod
    def backward(ctx: Any, grad_BLD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        branch_BLD, gain_B1D = ctx.saved_tensors
        d_gain_B1D = (grad_BLD * branch_BLD).sum_to_size(gain_B1D.shape)
        return grad_BLD.sum_to_size(ctx.shape), grad_BLD * gain_B1D, d_gain_B1D


class ModulatedNorm(torch.autograd.Function):
    """``apply(x_BLD, scale_B1D, shift_B1D, eps)``: torch's LayerNorm of each sample, with the sample's own gain and bias."""

    @staticmethod
    def forward(ctx: Any, x_BLD: Tensor, scale_B1D: Tensor, shift_B1D: Tensor, eps: float) -> Tensor:
        out_BLD = torch.empty_like(x_BLD, dtype=torch.get_autocast_dtype("cpu"))
        gain_BD, moments = 1 + scale_B1D[:, 0], []
        for x_LD, gain_D, shift_D, out_LD in zip(x_BLD, gain_BD, shift_B1D[:, 0], out_BLD, strict=True):
            made_LD, *both_L1 = torch.native_layer_norm(x_LD, gain_D.shape, gain_D, shift_D, eps)
            out_LD.copy_(made_LD)
            moments += both_L1
        ctx.save_for_backward(x_BLD, gain_BD, *moments)
        return out_BLD

    @staticmethod
    def backward(ctx: Any, grad_BLD: Tensor) -> tuple[Tensor | None, ...]:
        x_BLD, gain_BD, *moments = ctx.saved_tensors
        dx_BLD, dgain_BD, dshift_BD = torch.empty_like(x_BLD), torch.empty_like(gain_BD), torch.empty_like(gain_BD)
        for b, (x_LD, gain_D) in enumerate(zip(x_BLD, gain_BD, strict=True)):
            dx_BLD[b], dgain_BD[b], dshift_BD[b] = torch.ops.aten.native_layer_norm_backward(
                grad_BLD[b].float(), x_LD, gain_D.shape, *moments[2 * b : 2 * b + 2], gain_D, gain_D, [True] * 3
            )
        return dx_BLD, dgain_BD[:, None], dshift_BD[:, None], None


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
