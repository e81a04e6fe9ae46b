"""The environment of this process: its rank, its signals, and how many processes a configuration asks for."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence

from varlab.config import Config
from varlab.errors import VarlabError
from varlab.run.provenance import cores

__all__ = [
    "SIGNALS",
    "global_rank",
    "import_from",
    "local_rank",
    "needs_ranks",
    "requested_ranks",
    "started_ranks",
    "worker_count",
]

SIGNALS = (signal.SIGTERM, signal.SIGUSR2)
"""What Slurm sends at preemption, scancel and time limits."""


def started_ranks() -> int | None:
    """How many ranks torchrun, srun or varlab started together with this process; None for a process of its own."""
    if os.environ.get("LOCAL_RANK") is not None and os.environ.get("WORLD_SIZE") is not None:
        return int(os.environ["WORLD_SIZE"])
    # Only srun's tasks have this variable; the batch script itself does not.
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    return tasks if tasks > 1 and "SLURM_PROCID" in os.environ else None


def global_rank() -> int:
    """This process's rank: 0 in a process of its own. Only rank 0 writes."""
    if started_ranks() is None:
        return int(os.environ.get("NODE_RANK", "0"))
    return int(os.environ.get("RANK") or os.environ.get("SLURM_PROCID") or os.environ["LOCAL_RANK"])


def local_rank() -> int | None:
    """This process's number among the ranks of its machine; None for a process of its own."""
    if started_ranks() is None:
        return None
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)


def requested_ranks(config: Config) -> tuple[int, int]:
    """(ranks on each machine, machines) that ``config["trainer"]`` asks for; (1, 1) without a trainer.

    ``devices`` is a number, a list of device numbers, or ``auto`` (or -1): one rank for each GPU of this machine.
    """
    trainer = config.get("trainer") or {}
    devices, nodes = trainer.get("devices", 1), int(trainer.get("num_nodes") or 1)
    if isinstance(devices, list | tuple):
        return len(devices), nodes
    if str(devices) in ("auto", "-1"):
        return _gpus() if str(trainer.get("accelerator")) in ("gpu", "cuda", "auto") else 1, nodes
    try:
        return int(devices), nodes
    except (TypeError, ValueError):
        raise VarlabError(
            f"trainer.devices={devices} is neither a number, a list of numbers nor auto: use trainer.devices=1."
        ) from None


def _gpus() -> int:
    import torch

    return max(1, torch.cuda.device_count())


def needs_ranks(config: Config) -> bool:
    """Whether this process has to start ranks. Raises VarlabError if the ranks already started are not as many as asked for."""
    local, nodes = requested_ranks(config)
    started = started_ranks()
    if started is not None and started > 1 and started != local * nodes:
        raise VarlabError(
            f"{started} processes were started, but trainer.num_nodes={nodes} and trainer.devices={local} ask for "
            f"{nodes * local}: start as many as these two ask for."
        )
    return started is None and local * nodes > 1


def worker_count(setting: object, *, jobs: int) -> int:
    """Worker processes for a number of jobs: ``auto`` is one a core, and 0 (work in this process) where one would do."""
    if setting == "auto":
        return 0 if jobs < 2 or cores() < 2 else min(jobs, cores())
    if not isinstance(setting, int) or setting < 0:
        raise VarlabError(f"workers={setting} must be auto or a whole number (0 works in this process).")
    return setting


def import_from(folders: Sequence[str]) -> None:
    """Let this process import from these folders, too, after those that it knows."""
    sys.path += [folder for folder in folders if folder not in sys.path]
