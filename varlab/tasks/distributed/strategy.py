"""Lightning's strategy for several ranks, and who starts them."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
    TorchElasticEnvironment,
)
from lightning.pytorch.strategies import DDPStrategy


class RanksStrategy(DDPStrategy):
    """A process group without DistributedDataParallel around the module.

    DDP averages gradients inside every backward pass. An update here may have several (accumulation, the gradients that the
    adaptive λ compares, generator and discriminator), and needs exactly one average before clipping: in the last pass of a
    task with one loss (``BackwardAverage``), else after it (``collectives.average``). The weights need no broadcast either:
    initialisation is a function of the seed, and every rank makes the same update. shard: shards the module on this rank
    (``Task.shard``), or None.
    """

    def __init__(self, *, shard: Callable[[], None] | None):
        super().__init__()
        self._shard = shard

    def configure_ddp(self) -> None:
        """Shard the module or leave it unchanged."""
        if self._shard is not None:
            self._shard()

    def teardown(self) -> None:
        """Move the module to the CPU unless it is sharded."""
        if self._shard is None:
            super().teardown()
            return
        assert self.accelerator is not None
        for part in (self.precision_plugin, self.accelerator, self.checkpoint_io):
            part.teardown()


def cluster_environment(ranks: int) -> ClusterEnvironment:
    """The starter of this process: torchrun, varlab's own launcher (LOCAL_RANK set) or Slurm; none for a single rank."""
    if ranks > 1 and TorchElasticEnvironment.detect():
        return TorchElasticEnvironment()
    if ranks > 1 and "LOCAL_RANK" not in os.environ and "SLURM_PROCID" in os.environ:
        # a port of this attempt: on a node that Slurm had lost, ranks of an earlier attempt may keep theirs for a while
        job, restarts = int(os.environ["SLURM_JOB_ID"]), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        os.environ.setdefault("MASTER_PORT", str(15000 + (97 * job + restarts) % 15000))
        return SLURMEnvironment(auto_requeue=False)  # only the launcher requeues
    return LightningEnvironment()


def open_process_group(device: torch.device, *, rank: int, world: int) -> None:
    """Connect ranks that no Trainer connects, as it would; ``launch.exits.leave_process_group`` closes it."""
    place = cluster_environment(world)
    os.environ.update(MASTER_ADDR=place.main_address, MASTER_PORT=str(place.main_port))
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", rank=rank, world_size=world)
