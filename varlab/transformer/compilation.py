"""torch.compile of functions that many modules have in common: each is compiled once for all, not once a module."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any, TypeVar, cast

import torch

from varlab.types import VarlabError

Function = TypeVar("Function", bound=Callable[..., Any])


@cache
def compiled(function: Function, *, varying: bool = False) -> Function:
    """The function as ``torch.compile`` makes it. Raises where a part cannot be compiled.

    A method takes its module as the first argument: modules with weights of the same shapes then share what was compiled.
    varying: one form serves tensors of many lengths, as the steps of a sampling have; else each length gets a form of its own.
    """
    return cast(Function, torch.compile(function, dynamic=None if varying else False, fullgraph=True))


def plain(function: Function) -> Function:
    """The function itself."""
    return function


def require_compilable(device: torch.device) -> None:
    """Raise VarlabError under autocast on a processor, for which blocks compute by functions of its own."""
    if device.type == "cpu" and torch.is_autocast_enabled("cpu"):
        raise VarlabError(
            "compile=true is for GPUs; on a processor it works in float32 only: leave it out, or use precision=32-true "
            "(trainer.precision=32-true in a training)."
        )
