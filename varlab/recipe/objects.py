"""The one place where a ``_target_`` of a configuration becomes an object."""

from __future__ import annotations

from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from varlab.config import Config
from varlab.errors import VarlabError
from varlab.renames import resolve_targets


def make(config: Config, **live: Any) -> Any:
    """Build the object that ``_target_`` names, with further arguments from live objects.

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
        reason = " ".join(str(cause or error).split()).rstrip(".")
        raise VarlabError(f"{config.get('_target_')} could not be made from its configuration: {reason}.") from error
