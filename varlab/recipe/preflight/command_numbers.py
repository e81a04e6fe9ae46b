"""The plain numbers of a command's configuration, checked before anything is opened."""

from __future__ import annotations

from varlab.config import Config
from varlab.errors import VarlabError
from varlab.recipe.preflight.requested_ranks import requested_ranks

__all__ = ["require_numbers", "require_threads", "require_trainer"]

_LEAST = {"n": 1, "batch": 1, "shown": 1, "grown": 1, "seed": 0, "rounds": 1}


def require_numbers(config: Config) -> None:
    """Raise VarlabError if a number of a command that measures, or reads a run, makes no sense."""
    for name, least in _LEAST.items():
        if name in config and not _is_whole(config[name], least):
            raise VarlabError(f"{name}={config[name]} must be a whole number, at least {least}.")
    require_threads(config, "threads")


def require_trainer(config: Config) -> None:
    """Raise VarlabError if a number of a training's ``trainer``, or the micro-batch of its ``task``, makes no sense."""
    trainer = config["trainer"]
    require_threads(trainer, "trainer.threads")
    for key in ("trainer", "task"):
        size = config[key].get("micro_batch")
        if size is not None and not _is_whole(size, 1):
            raise VarlabError(
                f"{key}.micro_batch={size} must be a whole number, at least 1, or null for all samples of a rank."
            )
    updates = trainer.get("fast_dev_run") or False
    if not isinstance(updates, bool) and not _is_whole(updates, 1):
        raise VarlabError(f"trainer.fast_dev_run={updates} must be true, false or a number of updates.")
    local, _ = requested_ranks(config)
    if trainer.get("accelerator") == "cpu" and trainer.get("devices", 1) not in (local, "auto"):
        raise VarlabError(
            f"trainer.devices={trainer['devices']} names GPUs, but trainer.accelerator is cpu: use trainer.devices={local}."
        )


def require_threads(config: Config, key: str) -> None:
    """Raise VarlabError unless the threads of torch are at least one, or torch's own number. key: its whole name."""
    threads = config.get(key.rpartition(".")[2])
    if threads is not None and not _is_whole(threads, 1):
        raise VarlabError(f"{key}={threads} must be a whole number, at least 1, or null for torch's own number.")


def _is_whole(value: object, least: int) -> bool:
    return type(value) is int and value >= least
