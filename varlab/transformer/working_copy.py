"""A transformer for one sampling call: its weights are cast once and not at every step."""

from __future__ import annotations

from typing import TypeGuard, TypeVar

import torch
from torch import nn

from varlab.transformer.attention import Attention
from varlab.transformer.blocks.mlp import FastGELU
from varlab.transformer.cast_linear import CastLinear, Linear, WideLinear

Module = TypeVar("Module", bound=nn.Module)

# no subclass of a user, which may compute anything
_LINEAR, _GELU = (nn.Linear, Linear, WideLinear), (nn.GELU, FastGELU)


def working_copy(module: Module, device: torch.device) -> Module:
    """A copy with ``CastLinear`` layers in autocast's type, or in float32 on a processor. All other weights are shared.

    The embedding of inputs (``word``) stays as it is, since the transformer computes it in float32, and so does a layer of
    another class or with hooks. If neither type applies, the module itself. The copy has the weights of now: make one for
    each call, and write nothing to it.
    """
    kind = device.type
    if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
        return _cast(module, torch.get_autocast_dtype(kind))
    single = all(weight.dtype == torch.float32 for weight in module.parameters())
    # there, oneDNN's products are faster than those that torch takes
    return _cast(module, torch.float32) if kind == "cpu" and single else module


def _cast(module: Module, dtype: torch.dtype) -> Module:
    """A module that occurs twice has two copies, since a GELU may follow in one place only."""
    clone = object.__new__(type(module))  # a sharded module of FSDP2 has a way of its own to be made
    clone.__dict__ = {**module.__dict__, "_modules": {}, "_compiled_call_impl": None}
    made = clone._modules
    # the last first, the head, the largest: the memory of its cast then serves the others
    for name, child in reversed(module._modules.items()):
        if child is None or name == "word":
            made[name] = child
        elif isinstance(module, Attention) and name == "qkv" and _is_plain(child):
            made[name] = CastLinear(child.weight, module.qkv_bias(), dtype)
        else:
            made[name] = _cast_child(child, dtype)
    clone._modules = {name: made[name] for name in module._modules}
    if isinstance(clone, nn.Sequential):
        _join_gelus(clone)
    return clone


def _cast_child(child: nn.Module, dtype: torch.dtype) -> nn.Module:
    if _is_plain(child):
        return CastLinear(child.weight, child.bias, dtype)
    return child if isinstance(child, nn.Linear) else _cast(child, dtype)


def _is_plain(module: nn.Module) -> TypeGuard[nn.Linear]:
    """Whether it is a linear layer that computes nothing else."""
    return type(module) in _LINEAR and not _hooked(module)


def _hooked(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._forward_pre_hooks)


def _join_gelus(layers: nn.Sequential) -> None:
    """Give a GELU that follows a linear layer to that layer."""
    for before, (name, after) in zip(layers, list(layers.named_children())[1:], strict=False):
        if (
            isinstance(before, CastLinear)
            and isinstance(after, nn.GELU)
            and type(after) in _GELU
            and not _hooked(after)
        ):
            before.gelu, layers._modules[name] = after.approximate, nn.Identity()
