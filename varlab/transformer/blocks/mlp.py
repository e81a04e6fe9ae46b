"""The MLP of a block, with a GELU that is fast on a processor."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from varlab.processor import on_processor
from varlab.transformer.cast_linear import Linear, WideLinear

_SLOPE = math.sqrt(8 / math.pi)  # GELU in its tanh form is x·σ(x·(slope + cube·x²))
_CUBE = 0.044715 * _SLOPE
_PIECE = 1 << 16  # numbers for each thread at once: so many stay in a processor's cache


def mlp(width: int, ratio: float, approximate: str) -> nn.Sequential:
    """Linear, GELU (``approximate``: tanh or none), Linear."""
    hidden = round(width * ratio)
    return nn.Sequential(WideLinear(width, hidden), FastGELU(approximate=approximate), Linear(hidden, width))


class FastGELU(nn.GELU):
    """torch's, but its tanh form computes the derivative together with the result in bfloat16 on a processor."""

    def forward(self, x: Tensor) -> Tensor:
        if self.approximate == "tanh" and x.dtype == torch.bfloat16 and on_processor(x) and x.requires_grad:
            out: Tensor = TanhGELU.apply(x)
            return out
        return super().forward(x)


class TanhGELU(torch.autograd.Function):
    """``apply(x)``: GELU in its tanh form, computed in float32. It keeps the derivative in place of x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        x = x.contiguous()
        out, slope = torch.empty_like(x), torch.empty_like(x)
        size = _PIECE * torch.get_num_threads()
        for pieces in zip(*(tensor.view(-1).split(size) for tensor in (x, out, slope)), strict=True):
            _gelu_and_slope(*pieces)
        ctx.save_for_backward(slope)
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        slope: Tensor = ctx.saved_tensors[0]
        return grad * slope


def _gelu_and_slope(x: Tensor, out: Tensor, slope: Tensor) -> None:
    """Write GELU of x and its derivative: with g = σ(…) and y = x·g, that is g + (y - y·g)·(slope + 3·cube·x²)."""
    y = x.float()
    square = y.square()
    gate = square.mul(_CUBE).add_(_SLOPE).mul_(y).sigmoid_()
    out.copy_(y.mul_(gate))
    y.addcmul_(y, gate, value=-1)
    slope.copy_(gate.addcmul_(y, square.mul_(3 * _CUBE).add_(_SLOPE)))
