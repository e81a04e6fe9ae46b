"""Fully sharded weights (FSDP2, ZeRO-3): each rank holds its shard of every weight, gradient, moment and average.

The weights of a block are gathered just before they are used and freed after. Gradients are summed over the ranks as
``collectives.average`` sums them, so two ranks train to the same bits with or without sharding, unless gradients are clipped
(their norm is summed in another order). Outside this module a state is always full: checkpoints and exports do not depend
on how a run was sharded.

Not sharded: the weights during evaluation and sampling (``gathered``), autocast's half-precision copies of them during an
update, and the gradients of all micro-batches but the last (``reduce_gradients``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from varlab.config import Config


def shard(model: nn.Module, optimizer: Optimizer, *, parts: Sequence[nn.Module], device: torch.device) -> None:
    """Shard a model that every rank holds in full, and the parameters of its optimizer, which must not have stepped.

    parts: modules that are gathered one at a time (a transformer's blocks); all other weights are gathered for the whole of
    an update.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for part in (*parts, model):
        # gloo cannot average; a sum that is divided afterwards is what ``collectives.average`` computes
        fully_shard(part, mesh=mesh).set_force_sum_reduction_for_comms(True)
    parameters = dict(model.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [parameters[names[id(parameter)]] for parameter in group["params"]]


def is_sharded(what: Tensor | nn.Module) -> bool:
    """Whether a rank holds only its shard of this tensor or model."""
    return isinstance(what, DTensor | FSDPModule)


def reduce_gradients(model: nn.Module, now: bool) -> None:
    """Set whether the next backward pass sums gradients over the ranks: only the last of an update needs to."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)


def total_norm(grads: Sequence[Tensor]) -> Tensor:
    """The 2-norm of all gradients, full or sharded; a scalar, equal on all ranks."""
    norm = get_total_norm(grads)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Gather all weights on every rank, which can then use them without the other ranks, any number of times.

    All ranks must enter; the weights must not be written to.
    """
    parts = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for part in parts:
        part.set_reshard_after_forward(False, recurse=False)
        part.unshard()
    try:
        yield
    finally:
        for part in parts:
            part.reshard()
            part.set_reshard_after_forward(part is not model, recurse=False)


def full_state(state: Any, *, keep: bool) -> Any:
    """A state (dicts and lists of tensors and plain values) with full tensors on the CPU in place of sharded ones.

    All ranks must call it. Ranks that do not ``keep`` the result get None in place of these tensors, and hold one at a time.
    """
    if isinstance(state, DTensor):
        full = state.full_tensor().detach()
        return full.cpu() if keep else None
    if isinstance(state, Mapping):
        return {name: full_state(value, keep=keep) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(full_state(value, keep=keep) for value in state)
    return state


def shard_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A full tensor, sharded as ``other`` if that is sharded; every rank must pass the same one. May share memory."""
    if not isinstance(other, DTensor):
        return tensor
    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)


def shard_state(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``shard_like`` by name; names that the others lack stay as they are."""
    return {name: shard_like(tensor, others[name]) if name in others else tensor for name, tensor in tensors.items()}


def shard_moments(state: Config, optimizer: Optimizer) -> Config:
    """An optimizer's full state, with each moment sharded as its parameter."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        number: {
            name: shard_like(value, parameters[number])
            if isinstance(value, Tensor) and value.shape == parameters[number].shape
            else value
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    return {**state, "state": moments}
