"""The one place where a ``_target_`` of a configuration becomes an object.

A configuration that was read from a file is checked first, where it is read (``varlab.run.trust``).
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate

from varlab.config import Config
from varlab.errors import VarlabError
from varlab.renames import resolve_targets

if TYPE_CHECKING:
    from varlab.metrics.own_metrics import OwnMetrics


def make(config: Config, **live: Any) -> Any:
    """Build the object that ``_target_`` of a configuration names, with further arguments from live objects.

    Raises VarlabError: the constructor's own, or one that says which class refused which value.
    """
    config = resolve_targets(config)
    try:
        if config.get("_partial_"):
            return instantiate(config, **live, _convert_="all")
        # Hydra would copy the live objects: call the constructor with them afterwards.
        return instantiate(config, _partial_=True, _convert_="all")(**live)
    except (TypeError, ValueError, KeyError, InstantiationException) as error:
        cause = error.__cause__ if isinstance(error, InstantiationException) else None
        if isinstance(cause, VarlabError):
            raise cause from None
        raise VarlabError(
            f"{config.get('_target_')} could not be made from its configuration: {_reason(cause or error)}."
        ) from error


def _reason(error: BaseException) -> str:
    """What an error says, on one line; with a remedy if Hydra did not find a module."""
    said = " ".join(str(error).split()).partition(" Are you sure that module")[0].rstrip(".")
    if "ModuleNotFoundError" not in said:
        return said
    return f"{said}; give --config-dir with the folder of its file (in Python: put that folder on sys.path)"


def make_part(name: str, config: Config, **live: Any) -> Any:
    """Build a part of a configuration by its name (``condition``, ``extractor``, ``perceptual``).

    Its target gets those of the live objects that it names as parameters.
    """
    config = resolve_targets({name: config})[name]
    wanted = inspect.signature(target_of(config)).parameters
    return make(config, **{key: value for key, value in live.items() if key in wanted})


def target_of(config: Config) -> Callable[..., Any]:
    """Return the class or function that ``_target_`` names. Raises VarlabError if there is none."""
    name = resolve_targets(config).get("_target_")
    try:
        found = get_object(str(name))
    except Exception as error:  # of any import
        raise VarlabError(f"_target_ {name} cannot be imported: {_reason(error)}.") from error
    if not callable(found):
        raise VarlabError(f"_target_ {name} is neither a class nor a function.")
    return found


def own_metrics(config: Config | None) -> OwnMetrics:
    """Build the metrics of ``metrics.own``, by name; none without that part."""
    from varlab.metrics.own_metrics import OwnMetrics  # imports torchmetrics, which only scores need

    return OwnMetrics({name: make(one) for name, one in ((config or {}).get("own") or {}).items()})


_OTHERS = ("own", "protocol", "protocols", "tokens")
"""Keys of ``conf/metrics`` that are not settings of a generator's scores."""


def metric_settings(config: Config) -> Config:
    """Return the arguments of ``GeneratorScorer`` that ``conf/metrics`` sets, with its own metrics as objects."""
    return {key: value for key, value in config.items() if key not in _OTHERS} | {"own": own_metrics(config)}


def set_settings(config: Config) -> Config:
    """Return the arguments of ``GenerationScores`` that ``conf/metrics`` sets."""
    return {key: value for key, value in config.items() if key not in (*_OTHERS, "draws")}
