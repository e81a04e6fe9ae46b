"""Linear layers for a call that uses them many times: their weights are cast once."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CastLinear(nn.Module):
    """What ``linear`` computes under autocast to ``dtype``, from a copy of its weight that no step casts again.

    On a processor the copy is in the layout of the matrix product, which otherwise reorders it at every call. A weight that
    is of ``dtype`` already is not copied. gelu: which GELU follows (tanh, none), if one does.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype):
        super().__init__()
        self.gelu: str | None = None
        self._dtype = dtype
        self._one_dnn = weight.device.type == "cpu" and torch.backends.mkldnn.is_available()
        self._weight = weight.detach().to(dtype)
        self._bias = None if bias is None else bias.detach().to(dtype)
        self._packed = self._one_dnn and self._weight.dtype != weight.dtype
        if self._packed:
            self._weight = torch.ops.mkldnn._reorder_linear_weight(self._weight, None)

    @property
    def weight(self) -> Tensor:
        """The cast weight, in its usual layout."""
        return self._weight.to_dense() if self._packed else self._weight

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self._dtype)
        if self._one_dnn:
            after = ("none", "") if self.gelu is None else ("gelu", self.gelu)
            return torch.ops.mkldnn._linear_pointwise(x, self._weight, self._bias, after[0], [], after[1])
        y = F.linear(x, self._weight, self._bias)
        return y if self.gelu is None else F.gelu(y, approximate=self.gelu)
