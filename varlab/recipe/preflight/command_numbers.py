"""The plain numbers of a command's configuration, checked before anything is opened."""

from __future__ import annotations

from varlab.config import Config
from varlab.errors import VarlabError

__all__ = ["require_numbers", "require_threads"]

_LEAST = {"n": 1, "batch": 1, "shown": 1, "grown": 1, "seed": 0, "rounds": 1}


def require_numbers(config: Config) -> None:
    """Raise VarlabError if a number of a command that measures, or reads a run, makes no sense."""
    for name, least in _LEAST.items():
        if name in config and not _is_whole(config[name], least):
            raise VarlabError(f"{name}={config[name]} must be a whole number, at least {least}.")
    require_threads(config, "threads")


def require_threads(config: Config, key: str) -> None:
    """Raise VarlabError unless the threads of torch are at least one, or torch's own number. key: its whole name."""
    threads = config.get(key.rpartition(".")[2])
    if threads is not None and not _is_whole(threads, 1):
        raise VarlabError(f"{key}={threads} must be a whole number, at least 1, or null for torch's own number.")


def _is_whole(value: object, least: int) -> bool:
    return type(value) is int and value >= least
