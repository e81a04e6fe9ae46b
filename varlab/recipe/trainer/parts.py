"""Loggers, callbacks and profilers from the user's configuration, several at once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from lightning.pytorch import Callback
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler

from varlab.config import Config
from varlab.errors import VarlabError
from varlab.recipe.objects import make_part

__all__ = ["make_callbacks", "make_loggers", "make_profiler"]

logger = logging.getLogger(__name__)

DEFAULT_CALLBACKS = ("training_log", "validation", "progress_bar", "scores", "pictures")
"""Those of ``conf/callbacks/default.yaml``, in the order in which they act; a user's come after them."""
EXTRAS = ("wandb", "mlflow")
"""Loggers whose packages are optional dependencies of varlab under the same names."""

Part = TypeVar("Part")


def make_loggers(config: Config) -> list[Logger]:
    """Make the loggers of a configuration."""
    entries = _entries("logger", config)
    if not config.get("tensorboard", True):
        entries.pop("tensorboard", None)
    return [_make(f"logger.{name}", entry, Logger) for name, entry in entries.items()]


def make_callbacks(config: Config, *, without: Mapping[str, bool], **live: Any) -> list[Callback]:
    """Make the callbacks of a configuration; each gets those of the live objects that it names as parameters.

    without: whether a callback has nothing to do in this run, by its name.
    """
    entries = _entries("callbacks", config)
    if missing := [name for name in DEFAULT_CALLBACKS[:2] if name not in entries and not without.get(name)]:
        logger.warning("callbacks=… leaves out %s: callbacks=[default,NAME] keeps them", " and ".join(missing))
    names = sorted(entries, key=lambda name: [*DEFAULT_CALLBACKS, name].index(name))
    return [
        _make(f"callbacks.{name}", entries[name], Callback, **live) for name in names if not without.get(name, False)
    ]


def make_profiler(config: Config) -> Profiler | None:
    """Make the profiler of a configuration, if there is one."""
    entry = config.get("profiler")
    return _make("profiler", entry, Profiler) if entry else None


def _entries(group: str, config: Config) -> dict[str, Config]:
    """The parts of a config group by name. A file that gives its part no name has that of the group; null is no part."""
    given: Config = config.get(group) or {}
    named = {key: value for key, value in given.items() if isinstance(value, Mapping) and "_target_" in value}
    rest = {key: value for key, value in given.items() if key not in named and value is not None}
    if rest and "_target_" not in rest:
        raise VarlabError(f"{group}.{next(iter(rest))} has no _target_: name the class that it is made from.")
    return named | ({group: rest} if rest else {})


def _make(key: str, config: Config, kind: Callable[..., Part], **live: Any) -> Part:
    """Make one part. Raises VarlabError if its package is missing, or if it is something else."""
    name = key.rpartition(".")[2]
    try:
        made = make_part(name, config, **{key: value for key, value in live.items() if key not in config})
    except ImportError as error:
        package = f"'varlab[{name}]'" if name in EXTRAS else "the package"
        raise VarlabError(f"{key} needs a package that is not installed ({error}): pip install {package}.") from error
    if not isinstance(made, kind):  # type: ignore[arg-type]
        raise VarlabError(f"{key} makes a {type(made).__name__}, but must make a lightning.pytorch {kind.__name__}.")
    return made
