"""A transformer for one sampling call: under autocast, its weights are cast once and not at every step."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from varlab.transformer.attention import Attention
from varlab.transformer.cast_linear import CastLinear

Module = TypeVar("Module", bound=nn.Module)


def working_copy(module: Module, device: torch.device) -> Module:
    """The module itself without autocast, otherwise a copy with ``CastLinear`` layers. All other weights are shared.

    The embedding of inputs (``word``) stays in float32, as the transformer computes it.

    The copy has the weights of now: make one for each call, and write nothing to it.
    """
    kind = device.type
    if not torch.amp.is_autocast_available(kind) or not torch.is_autocast_enabled(kind):
        return module
    return _cast(module, torch.get_autocast_dtype(kind))


def _cast(module: Module, dtype: torch.dtype) -> Module:
    clone = module.__new__(type(module))
    clone.__dict__ = {**module.__dict__, "_modules": {}, "_compiled_call_impl": None}
    for name, child in module.named_children():
        if name == "word":
            clone._modules[name] = child
        elif type(child) is nn.Linear:
            bias = module.qkv_bias() if isinstance(module, Attention) and name == "qkv" else child.bias
            clone._modules[name] = CastLinear(child.weight, bias, dtype)
        else:
            clone._modules[name] = _cast(child, dtype)
    return clone
