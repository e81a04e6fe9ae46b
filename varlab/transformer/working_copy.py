"""A transformer for one sampling call: its weights are cast once and not at every step."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from varlab.transformer.attention import Attention
from varlab.transformer.cast_linear import CastLinear

Module = TypeVar("Module", bound=nn.Module)


def working_copy(module: Module, device: torch.device) -> Module:
    """A copy with ``CastLinear`` layers in autocast's type, or in float32 on a processor. All other weights are shared.

    The embedding of inputs (``word``) stays as it is, since the transformer computes it in float32. If neither type applies,
    the module itself. The copy has the weights of now: make one for each call, and write nothing to it.
    """
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return _cast(module, torch.get_autocast_dtype(kind))
    single = all(weight.dtype == torch.float32 for weight in module.parameters())
    # there, oneDNN's products are faster than those that torch takes
    return _cast(module, torch.float32) if kind == "cpu" and single else module


def _cast(module: Module, dtype: torch.dtype) -> Module:
    clone = object.__new__(type(module))  # a sharded module of FSDP2 has a way of its own to be made
    clone.__dict__ = {**module.__dict__, "_modules": {}, "_compiled_call_impl": None}
    names, made = list(module._modules), clone._modules
    # the last first, the head, the largest: the memory of its cast then serves the others
    for name, child in reversed(list(module.named_children())):
        if name == "word":
            made[name] = child
        elif isinstance(child, nn.Linear):
            bias = module.qkv_bias() if isinstance(module, Attention) and name == "qkv" else child.bias
            made[name] = CastLinear(child.weight, bias, dtype)
        else:
            made[name] = _cast(child, dtype)
    clone._modules = {name: made.get(name) for name in names}
    if isinstance(clone, nn.Sequential):
        for before, (name, after) in zip(clone, list(clone.named_children())[1:], strict=False):
            if isinstance(after, nn.GELU) and isinstance(before, CastLinear):
                before.gelu, clone._modules[name] = after.approximate, nn.Identity()
    return clone
