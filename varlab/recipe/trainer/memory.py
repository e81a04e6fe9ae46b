"""Bytes that a training of a transformer needs on each device, from shapes alone: nothing is allocated or computed."""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from varlab.config import Config
from varlab.losses.token_loss import token_loss
from varlab.recipe.flops import MethodCall
from varlab.recipe.preflight.requested_ranks import world_size
from varlab.recipe.trainer.free_memory import free_bytes, host_free_bytes
from varlab.rng import Rng
from varlab.transformer import Transformer
from varlab.types import Slots

_DEPTHS = (2, 3)  # blocks that are run: memory grows by the same amount with each block


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes on each device. activations: the most that is alive at once beside the rest, half-precision weights included.

    moments: AdamW's. gathered: of sharded weights, those that are whole at once.
    """

    weights: int
    gradients: int
    moments: int
    average: int
    gathered: int
    activations: int

    @property
    def total(self) -> int:
        """The peak: gradients count as a whole, though most do not exist yet when activations need most."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True, kw_only=True)
class Devices:
    """How a training is spread. micro_batch: samples that go through the model at once on each device.

    whole: whether one micro-batch is the device's whole share of a batch. average: whether there is an average of the weights.
    """

    world: int = 1
    shard: bool = False
    recompute: bool = False
    precision: str = "bf16-mixed"
    micro_batch: int = 1
    whole: bool = False
    average: bool = True


def training_memory(transformer: Transformer, slots: Slots, devices: Devices) -> Memory:
    """The memory of a training from token maps with AdamW. transformer: on any device, ``meta`` too. slots: of one sample."""
    parameters = [p for p in transformer.parameters() if p.requires_grad]
    full, world = tensor_bytes(parameters), devices.world if devices.shard else 1
    own = tensor_bytes(parameters, world)
    return Memory(
        weights=own + tensor_bytes(transformer.buffers()),
        gradients=own if devices.whole else full,  # gradients of all micro-batches but the last are not sharded
        moments=2 * own,
        average=tensor_bytes(transformer.state_dict().values(), world) if devices.average else 0,
        gathered=_gathered(transformer) if world > 1 else 0,
        activations=activation_bytes(transformer, slots, devices),
    )


def tensor_bytes(tensors: Iterable[Tensor], world: int = 1) -> int:
    """The bytes of tensors, or those of rank 0's shards of them: FSDP2 cuts the first dimension, rounded up."""
    return sum(-(-len(t) // world) * t[:1].numel() * t.element_size() if t.ndim else t.element_size() for t in tensors)


def has_room(model: nn.Module, trainer: Config) -> bool:
    """Whether some updates of a training can be tried here: by one process, with a model of these sizes."""
    size, ranks = tensor_bytes(model.parameters()), world_size(trainer)
    # the device holds weights, gradients and two moments; a model and its average are made in main memory
    return ranks == 1 and 4 * size <= free_bytes(trainer) and 2 * size <= host_free_bytes()


def _gathered(transformer: Transformer) -> int:
    """All that is in no block, and of blocks: weights of this one and the next, and gradients on their way."""
    blocks = [tensor_bytes(block.parameters()) for block in transformer.blocks]
    return tensor_bytes(transformer.parameters()) - sum(blocks) + 3 * max(blocks)


def activation_bytes(transformer: Transformer, slots: Slots, devices: Devices) -> int:
    """The most bytes alive at once in a forward and a backward pass, without weights and gradients of weights."""
    few, more = (_peaks(_with_depth(transformer, depth), slots, devices) for depth in _DEPTHS)
    blocks = transformer.depth - _DEPTHS[0]
    return max(a + (b - a) * blocks for a, b in zip(few, more, strict=True))


def _with_depth(transformer: Transformer, depth: int) -> Transformer:
    part = copy.copy(transformer)
    part._modules = transformer._modules | {"blocks": transformer.blocks[:depth]}
    return part


def _peaks(transformer: Transformer, slots: Slots, devices: Devices) -> tuple[int, int]:
    """The peaks of the forward and the backward pass, which need more memory with each block, but not the same.

    They run on tensors that only have a shape. Each gradient is dropped as soon as it is complete."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    samples = slots.repeat_batch(devices.micro_batch)
    with fake:
        weights = {name: _empty(t) for name, t in [*transformer.named_parameters(), *transformer.named_buffers()]}
        inputs = samples._map(_empty, keep=("step_L",))  # the host reads step_L
        label_B = torch.zeros(devices.micro_batch, dtype=torch.int64)
    for weight in weights.values():
        if weight.requires_grad:
            weight.register_post_accumulate_grad_hook(_drop)
    options = {"rng": Rng(0), "ids_B": label_B, "recompute": devices.recompute}

    def update(model: nn.Module) -> tuple[int, int]:
        with LiveBytes() as live:
            with torch.autocast("cpu", torch.bfloat16, enabled=devices.precision.startswith("bf16")):
                logits_BLV = model(inputs, label_B, **options)
                loss = token_loss(logits_BLV.flatten(0, 1), inputs.pos_BL.flatten(), label_smoothing=0.0)
            forward, live.peak = live.peak, 0
            del logits_BLV
            loss.backward()
            return forward, live.peak

    named = {f"module.{name}": weight for name, weight in weights.items()}
    peaks: tuple[int, int] = functional_call(MethodCall(transformer, update), named, ())
    return peaks


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype).requires_grad_(tensor.requires_grad)


def _drop(parameter: Tensor) -> None:
    parameter.grad = None


class LiveBytes(TorchDispatchMode):
    """Follows the bytes of all storages that operations make, until the last tensor on each is gone."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, weakref.ref[torch.UntypedStorage]] = {}

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        before = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        out = func(*args, **(kwargs or {}))
        self._see([t for t in tree_leaves(out) if isinstance(t, Tensor)], before)
        return out

    def _see(self, made: Sequence[Tensor], before: set[int]) -> None:
        for storage in (tensor.untyped_storage() for tensor in made):
            key, size = storage._cdata, storage.nbytes()
            if key not in before and key not in self._known:
                self._known[key] = weakref.ref(storage, partial(self._forget, key, size))
                self.now += size
        self.peak = max(self.peak, self.now)

    def _forget(self, key: int, size: int, _: object) -> None:
        del self._known[key]
        self.now -= size
