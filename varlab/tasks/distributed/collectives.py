"""Several processes as one: averages, sums and gathers that do nothing in a single process, and the strategy for more."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor

_BUCKET = 1 << 24  # elements sent at once: 64 MiB of float32


class RanksStrategy(DDPStrategy):
    """A process group and nothing else: the module is not wrapped in DistributedDataParallel.

    DDP averages gradients inside every backward. Here an update may have several (accumulation, the gradients that the
    adaptive λ compares, generator and discriminator), and exactly one average is wanted, after the last of them and
    before clipping: ``average`` does that. The weights need no broadcast either, because initialisation is a function
    of the seed and every rank makes the same update.
    """

    def __init__(self, *, spread: bool = False):
        super().__init__()
        self._spread = spread

    def configure_ddp(self) -> None:
        """Leave the module as it is, or leave each rank its part of the weights (``Task.spread``)."""
        task: Any = self.lightning_module
        if self._spread:
            task.spread()

    def teardown(self) -> None:
        """Move everything to the CPU, but for parts of weights, which belong where they are."""
        if not self._spread:
            super().teardown()
            return
        assert self.accelerator is not None
        for part in (self.precision_plugin, self.accelerator, self.checkpoint_io):
            part.teardown()


def cluster_environment() -> ClusterEnvironment:
    """Who started this process: torchrun, Slurm's own tasks, or our own entry (LOCAL_RANK set) and nobody."""
    if TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if SLURMEnvironment.detect() and SLURMEnvironment().world_size() > 1:
        # a port of this attempt: ranks of an earlier one, on a node that Slurm had lost, may hold theirs for a while
        job, restarts = int(os.environ["SLURM_JOB_ID"]), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        os.environ.setdefault("MASTER_PORT", str(15000 + (97 * job + restarts) % 15000))
        return SLURMEnvironment(auto_requeue=False)  # requeueing belongs to the launcher alone
    return LightningEnvironment()


def world_size() -> int:
    """Processes that train together."""
    return dist.get_world_size() if _grouped() else 1


def rank() -> int:
    """This process's number among them."""
    return dist.get_rank() if _grouped() else 0


def _grouped() -> bool:
    return dist.is_available() and dist.is_initialized()


@torch.no_grad()
def average(tensors: Sequence[Tensor]) -> None:
    """Replace each tensor by its mean over the ranks, in place: the ranks' shares of a batch are equally large."""
    if world_size() == 1:
        return
    for bucket in _buckets(tensors):
        flat = torch.cat([t.reshape(-1) for t in bucket])
        dist.all_reduce(flat)
        flat.div_(world_size())
        for tensor, mean in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
            tensor.copy_(mean.view_as(tensor))


def _buckets(tensors: Sequence[Tensor]) -> list[list[Tensor]]:
    """Neighbours of one type, together until a bucket is full."""
    buckets: list[list[Tensor]] = []
    size = 0
    for tensor in tensors:
        if not buckets or buckets[-1][0].dtype != tensor.dtype or size + tensor.numel() > _BUCKET:
            buckets.append([])
            size = 0
        buckets[-1].append(tensor)
        size += tensor.numel()
    return buckets


def add_up(tensor: Tensor) -> Tensor:
    """The sum over the ranks."""
    if world_size() > 1:
        dist.all_reduce(tensor)
    return tensor


def gather_rows(tensor_NC: Tensor) -> Tensor:
    """All ranks' rows in the order of ranks; each rank has the same number."""
    if world_size() == 1:
        return tensor_NC
    parts = [torch.empty_like(tensor_NC) for _ in range(world_size())]
    dist.all_gather(parts, tensor_NC.contiguous())
    return torch.cat(parts)


def add_up_named(sums: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Sums over the ranks by name; a rank may lack names (it had no image), and then counts as zero."""
    parts: list[Mapping[str, Tensor]] = [{name: value.cpu() for name, value in sums.items()}]
    if world_size() > 1:
        gathered: list = [None] * world_size()
        dist.all_gather_object(gathered, parts[0])
        parts = gathered
    total: dict[str, Tensor] = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total[name] + value if name in total else value
    return total


def gather_objects(value: Any) -> list[Any]:
    """What each rank has, in their order: small plain data."""
    if world_size() == 1:
        return [value]
    gathered: list[Any] = [None] * world_size()
    dist.all_gather_object(gathered, value)
    return gathered
