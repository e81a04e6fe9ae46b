"""Linear layers with weights in the layout of the processor's matrix product."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from varlab.processor import emulates_bfloat16, on_processor
from varlab.types import full_precision

_ROWS = 1024  # fewer repay no other layout of the weight
_PIECE = 512  # rows that are widened at once, so that their copies take little memory

_reordered = torch.ops.mkldnn._reorder_linear_weight
_product = torch.ops.mkldnn._linear_pointwise
_MULTIPLIED: defaultdict[torch.dtype, Callable[[], bool]] = defaultdict(  # whether oneDNN multiplies a type here
    lambda: lambda: True,
    {
        torch.bfloat16: torch.ops.mkldnn._is_mkldnn_bf16_supported,
        torch.float16: torch.ops.mkldnn._is_mkldnn_fp16_supported,
    },
)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, wide: bool = False) -> Tensor:
    """The linear layer; under autocast on a processor by ``WidenedLinear`` or, of many rows, by ``PackedLinear``.

    wide: whether another layout of the weight is repaid, as with more outputs than inputs.
    """
    if not on_processor(x) or not torch.is_autocast_enabled("cpu"):
        return F.linear(x, weight, bias)
    emulated, many = emulates_bfloat16(x), wide and x.numel() >= _ROWS * x.shape[-1]
    if not emulated and not (many and torch.ops.mkldnn._is_mkldnn_bf16_supported()):
        return F.linear(x, weight, bias)
    rows = x.to(torch.get_autocast_dtype("cpu")).flatten(0, -2)
    kind = WidenedLinear if emulated else PackedLinear
    out: Tensor = kind.apply(rows, weight, bias)  # no view of its own: a loss may overwrite it
    return out.unflatten(0, x.shape[:-1])


class Linear(nn.Linear):
    """torch's layer, computed by ``linear``."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


class WideLinear(nn.Linear):
    """A layer with more outputs than inputs, where another layout of the weight is repaid."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias, wide=True)


class WidenedLinear(torch.autograd.Function):
    """``apply(rows, weight, bias)`` in the type of the rows, but multiplied in float32, for processors that emulate theirs."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        out = rows.new_empty(len(rows), len(weight))
        wide, wide_bias = weight.float(), None if bias is None else bias.float()
        with full_precision(rows):
            for part, out_part in zip(rows.split(_PIECE), out.split(_PIECE), strict=True):
                out_part.copy_(F.linear(part.float(), wide, wide_bias))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        rows, weight = ctx.saved_tensors
        wide, d_rows = weight.float(), torch.empty_like(rows)
        d_weight, d_bias = torch.zeros_like(wide), wide.new_zeros(len(wide))
        with full_precision(grad):
            for part, grad_part, d_part in zip(*(x.split(_PIECE) for x in (rows, grad, d_rows)), strict=True):
                wide_grad = grad_part.float()
                d_part.copy_(wide_grad @ wide)
                d_weight.addmm_(wide_grad.mT, part.float())
                d_bias += wide_grad.sum(0)
        return d_rows, d_weight.to(weight.dtype), d_bias.to(weight.dtype) if ctx.needs_input_grad[2] else None


class PackedLinear(torch.autograd.Function):
    """``apply(rows, weight, bias)``: weight and bias in the type of the rows, the weight in the layout of the product."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        narrow, bias = weight.to(rows.dtype), None if bias is None else bias.to(rows.dtype)
        ctx.dtype = weight.dtype
        ctx.save_for_backward(rows, narrow)
        out: Tensor = _product(rows, _reordered(narrow, None), bias, "none", [], "")
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        rows, weight = ctx.saved_tensors
        ones = grad.new_ones(1, len(grad))  # times it, columns are summed faster than by torch's sum
        bias = (ones @ grad)[0].to(ctx.dtype) if ctx.needs_input_grad[2] else None
        return grad @ weight, (grad.mT @ rows).to(ctx.dtype), bias


class CastLinear(nn.Module):
    """What ``linear`` computes under autocast to ``dtype``, from a copy of its weight that no step casts again.

    On a processor the copy is in the layout of the matrix product, which otherwise reorders it at every call. A weight that
    is of ``dtype`` already is not copied. gelu: which GELU follows (tanh, none), if one does.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype):
        super().__init__()
        self.gelu: str | None = None
        self._dtype = dtype
        self._one_dnn = weight.device.type == "cpu" and torch.backends.mkldnn.is_available() and _MULTIPLIED[dtype]()
        self._weight = weight.detach().to(dtype)
        self._bias = None if bias is None else bias.detach().to(dtype)
        self._packed = self._one_dnn and self._weight.dtype != weight.dtype
        if self._packed:
            self._weight = _reordered(self._weight, None)

    @property
    def weight(self) -> Tensor:
        """The cast weight, in its usual layout."""
        return self._weight.to_dense() if self._packed else self._weight

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self._dtype)
        if self._one_dnn:
            after = ("none", "") if self.gelu is None else ("gelu", self.gelu)
            return _product(x, self._weight, self._bias, after[0], [], after[1])
        y = F.linear(x, self._weight, self._bias)
        return y if self.gelu is None else F.gelu(y, approximate=self.gelu)
