"""What a condition does to a block of the transformer: it modulates the norms and gates what is added."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from varlab.processor import on_processor
from varlab.transformer.cast_linear import Linear

_LONG = 1 << 16  # numbers of a sample from which on a single pass over each is faster


def modulation(width: int, parts: int) -> Linear:
    """Makes ``parts`` vectors of the width from SiLU of the condition."""
    return Linear(width, parts * width)


def modulated(norm: nn.LayerNorm, x_BLD: Tensor, scale_B1D: Tensor, shift_B1D: Tensor) -> Tensor:
    """norm(x)·(1 + scale) + shift; of long samples on a processor in a single pass, and under autocast in its type."""
    if not on_processor(x_BLD) or x_BLD[0].numel() < _LONG:
        return plus_product(shift_B1D, norm(x_BLD), 1 + scale_B1D)
    scale_B1D, shift_B1D = scale_B1D.to(x_BLD.dtype), shift_B1D.to(x_BLD.dtype)
    if not torch.is_grad_enabled():
        return _modulated_samples(x_BLD, 1 + scale_B1D[:, 0], shift_B1D[:, 0], norm.eps)[0]
    out_BLD: Tensor = ModulatedNorm.apply(x_BLD, scale_B1D, shift_B1D, norm.eps)
    return out_BLD


def _modulated_samples(x_BLD: Tensor, gain_BD: Tensor, shift_BD: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """torch's LayerNorm of each sample, with the sample's own gain and bias; and its means and rates, (2, B, L, 1)."""
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x_BLD.dtype
    out_BLD = torch.empty_like(x_BLD, dtype=dtype)
    moments_2BL1 = x_BLD.new_empty(2, *x_BLD.shape[:2], 1)
    wide_LD = None if dtype == x_BLD.dtype else torch.empty_like(x_BLD[0])  # the operation makes the type it is given
    for x_LD, gain_D, shift_D, out_LD, mean_L1, rate_L1 in zip(
        x_BLD, gain_BD, shift_BD, out_BLD, *moments_2BL1, strict=True
    ):
        made_LD = out_LD if wide_LD is None else wide_LD
        torch.ops.aten.native_layer_norm.out(
            x_LD, gain_D.shape, gain_D, shift_D, eps, out0=made_LD, out1=mean_L1, out2=rate_L1
        )
        if wide_LD is not None:
            out_LD.copy_(wide_LD)
    return out_BLD, moments_2BL1


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
        gain_BD = 1 + scale_B1D[:, 0]
        out_BLD, moments_2BL1 = _modulated_samples(x_BLD, gain_BD, shift_B1D[:, 0], eps)
        ctx.save_for_backward(x_BLD, gain_BD, moments_2BL1)
        return out_BLD

    @staticmethod
    def backward(ctx: Any, grad_BLD: Tensor) -> tuple[Tensor | None, ...]:
        x_BLD, gain_BD, moments_2BL1 = ctx.saved_tensors
        dx_BLD, dgain_BD, dshift_BD = torch.empty_like(x_BLD), torch.empty_like(gain_BD), torch.empty_like(gain_BD)
        for b, (x_LD, gain_D) in enumerate(zip(x_BLD, gain_BD, strict=True)):
            dx_BLD[b], dgain_BD[b], dshift_BD[b] = torch.ops.aten.native_layer_norm_backward(
                grad_BLD[b].to(x_LD.dtype), x_LD, gain_D.shape, *moments_2BL1[:, b], gain_D, gain_D, [True] * 3
            )
        return dx_BLD, dgain_BD[:, None], dshift_BD[:, None], None
