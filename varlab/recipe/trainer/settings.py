"""Lightning's Trainer from ``conf/trainer``: keys that pass through, keys of ours, and keys that the run itself decides."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable, Mapping
from functools import partial

from lightning.pytorch import Trainer

from varlab.config import Config
from varlab.errors import VarlabError
from varlab.recipe.objects import make, target_of

__all__ = ["check_keys", "dev_batches", "trainer_maker"]

TARGET = "lightning.pytorch.Trainer"
OURS = ("micro_batch", "recompute", "compile", "threads", "shard")
INSTEAD: Mapping[str, str] = {
    "accumulate_grad_batches": "trainer.micro_batch",
    "callbacks": "callbacks=[default,NAME]",
    "check_val_every_n_epoch": "val.every",
    "default_root_dir": "out",
    "enable_checkpointing": "checkpoint.every",
    "enable_progress_bar": "~callbacks.progress_bar",
    "limit_train_batches": "budget.images",
    "log_every_n_steps": "log.every",
    "logger": "logger=[NAME,NAME]",
    "max_epochs": "budget.images",
    "max_steps": "budget.images",
    "max_time": "budget.seconds",
    "min_epochs": "budget.images",
    "min_steps": "budget.images",
    "num_sanity_val_steps": "val.every",
    "overfit_batches": "budget.images and data.path",
    "plugins": "trainer=ddp",
    "profiler": "profiler=NAME",
    "reload_dataloaders_every_n_epochs": "budget.images",
    "strategy": "trainer=ddp or trainer=fsdp",
    "use_distributed_sampler": "trainer.devices",
    "val_check_interval": "val.every",
}
"""Arguments of Lightning's Trainer that the run decides, with the key that says the same here."""


def check_keys(config: Config) -> None:
    """Raise VarlabError for a key of ``conf/trainer`` that the Trainer does not know, or that the run itself decides."""
    target = target_of({"_target_": TARGET} | config)
    known = inspect.signature(target).parameters
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in known.values())
    for key in config:
        if key in INSTEAD:
            raise VarlabError(f"trainer.{key} is decided by the run itself: use {INSTEAD[key]}.")
        if not (key in known or key in OURS or key.startswith("_") or takes_all):
            near = difflib.get_close_matches(key, [*known, *OURS], n=1)
            hint = f"did you mean trainer.{near[0]}?" if near else "see Lightning's documentation of its Trainer."
            raise VarlabError(f"trainer.{key} is no argument of {target.__module__}.{target.__qualname__}: {hint}")


def trainer_maker(config: Config) -> Callable[..., Trainer]:
    """Return a function that makes the Trainer of ``conf/trainer``, with further arguments."""
    passed = {key: value for key, value in config.items() if key not in OURS}
    return partial(make, {"_target_": TARGET, "enable_model_summary": False} | passed)


def dev_batches(config: Config) -> int:
    """The updates of Lightning's ``fast_dev_run``; 0 for a whole training."""
    return int(config.get("fast_dev_run") or 0)
