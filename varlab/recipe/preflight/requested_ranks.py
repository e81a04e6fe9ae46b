"""How many processes a configuration of ``conf/trainer`` asks for, known without torch unless GPUs must be counted."""

from __future__ import annotations

from varlab.config import Config
from varlab.errors import VarlabError

__all__ = ["names_all_gpus", "requested_ranks", "world_size"]


def requested_ranks(config: Config) -> tuple[int, int]:
    """(ranks on each machine, machines) that ``config["trainer"]`` asks for; (1, 1) without a trainer.

    ``devices`` is a number, a list of device numbers, or ``auto`` (or -1): one rank for each GPU of this machine.
    Raises VarlabError for other values.
    """
    trainer = config.get("trainer") or {}
    devices, nodes = trainer.get("devices", 1), trainer.get("num_nodes", 1)
    if not _is_count(nodes):
        raise VarlabError(f"trainer.num_nodes={nodes} must be a whole number, at least 1.")
    uses_gpus = str(trainer.get("accelerator")) in ("gpu", "cuda", "auto")
    if names_all_gpus(trainer):
        return _gpus() if uses_gpus else 1, nodes
    if isinstance(devices, list | tuple) and devices and all(type(number) is int for number in devices):
        return len(devices), nodes
    if _is_count(devices):
        return devices, nodes
    raise VarlabError(
        f"trainer.devices={devices} is neither a number above 0, a list of numbers nor auto: use trainer.devices=1."
    )


def world_size(trainer: Config) -> int:
    """The ranks on all machines. trainer: ``conf/trainer``."""
    local, nodes = requested_ranks({"trainer": trainer})
    return local * nodes


def names_all_gpus(trainer: Config) -> bool:
    """Whether the devices are all GPUs of the machine on which a rank starts."""
    return str(trainer.get("devices", 1)) in ("auto", "-1")


def _is_count(value: object) -> bool:
    return type(value) is int and value >= 1


def _gpus() -> int:
    import torch

    return max(1, torch.cuda.device_count())
