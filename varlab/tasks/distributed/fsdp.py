"""Weights spread over the ranks (FSDP2, ZeRO-3): each holds its part of every tensor, of its gradient, moments and average.

A block's weights are gathered just before they are used, and let go after; sums over the ranks are those that ``average``
makes, so that two ranks train to the same bits with or without it, as long as no gradient is clipped (its norm is added up in
another order). Outside of this room a state is whole: checkpoints and exports do not show how a run was spread.

Not spread: the weights while they are evaluated or sampled from (``gathered``), autocast's half-precision copies of them
during an update, and the gradients of micro-batches before the last (``reduce_gradients``).
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


def spread(model: nn.Module, optimizer: Optimizer, *, parts: Sequence[nn.Module], device: torch.device) -> None:
    """Leave each rank its part of a model that all of them hold, and of what its optimizer updates.

    parts: modules that are gathered one at a time (a transformer's blocks); what is in none of them is gathered for the
    whole of an update. The optimizer must not have stepped yet.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    for part in (*parts, model):
        # gloo has no averages, and a sum divided afterwards is what ``ranks.average`` computes
        fully_shard(part, mesh=mesh).set_force_sum_reduction_for_comms(True)
    parameters = dict(model.named_parameters())
    for group in optimizer.param_groups:
        group["params"] = [parameters[names[id(parameter)]] for parameter in group["params"]]


def is_spread(what: Tensor | nn.Module) -> bool:
    """Whether a rank holds only its part of this tensor or model."""
    return isinstance(what, DTensor | FSDPModule)


def reduce_gradients(model: nn.Module, now: bool) -> None:
    """Whether the next backward pass adds its gradients up over the ranks: only an update's last needs to."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(now)


def total_norm(grads: Sequence[Tensor]) -> Tensor:
    """The 2-norm of all gradients, whole or spread; equal on all ranks, ()."""
    norm = get_total_norm(grads)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


@contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """The whole of the weights on every rank, which then may use them as often as it likes without the others.

    All ranks must enter; the weights may not be written to.
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


def whole(state: Any, *, keep: bool) -> Any:
    """A state (dicts and lists of tensors and plain values) with its spread tensors put together, on the CPU.

    All ranks must call it; those that do not ``keep`` have None in the place of such tensors, and one at a time in memory.
    """
    if isinstance(state, DTensor):
        full = state.full_tensor().detach()
        return full.cpu() if keep else None
    if isinstance(state, Mapping):
        return {name: whole(value, keep=keep) for name, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(whole(value, keep=keep) for value in state)
    return state


def like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, spread as another is, if that is; each rank must give the same. Shares memory where it can."""
    if not isinstance(other, DTensor):
        return tensor
    return distribute_tensor(tensor, other.device_mesh, other.placements, src_data_rank=None)


def all_like(tensors: Mapping[str, Tensor], others: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``like`` by name; names that the others lack are left as they are."""
    return {name: like(tensor, others[name]) if name in others else tensor for name, tensor in tensors.items()}


def moments_like(state: Mapping[str, Any], optimizer: Optimizer) -> Config:
    """An optimizer's whole state, its moments spread as the parameters are that they belong to."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = {
        number: {
            name: like(value, parameters[number])
            if isinstance(value, Tensor) and value.shape == parameters[number].shape
            else value
            for name, value in values.items()
        }
        for number, values in state["state"].items()
    }
    return {**state, "state": moments}
