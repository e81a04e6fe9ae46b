"""What contracts are written with: one sentence for each expectation that is not met."""

from __future__ import annotations

import inspect

import torch
from torch import Tensor

from varlab.errors import VarlabError

__all__ = ["expect", "expect_close", "expect_tensor", "members", "require_members"]


def expect(met: bool, sentence: str) -> None:
    """Raise VarlabError with the sentence unless the expectation is met."""
    if not met:
        raise VarlabError(sentence)


def expect_close(found: Tensor, wanted: Tensor, atol: float, sentence: str) -> None:
    """Raise VarlabError unless two tensors have one shape and lie within ``atol``."""
    same = found.shape == wanted.shape
    off = float((found.detach().double() - wanted.detach().double()).abs().max()) if same and found.numel() else 0.0
    detail = f"they differ by {off:.3g}" if same else f"their shapes are {tuple(found.shape)} and {tuple(wanted.shape)}"
    expect(same and off <= atol, f"{sentence} ({detail}).")


def expect_tensor(value: object, shape: tuple[int, ...], dtype: torch.dtype, what: str) -> None:
    """Raise VarlabError unless ``what`` is a tensor of this shape and type."""
    found = f"{tuple(value.shape)} {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
    met = isinstance(value, Tensor) and tuple(value.shape) == shape and value.dtype == dtype
    expect(met, f"{what} must be a tensor of {shape} {dtype}, not {found}.")


def members(protocol: type) -> list[str]:
    """The names that a protocol lists."""
    own = {name for base in protocol.__mro__ for name in (*base.__dict__, *inspect.get_annotations(base))}
    return sorted(name for name in own if not name.startswith("_"))


def require_members(thing: object, protocol: type) -> None:
    """Raise VarlabError for what a protocol lists and the object lacks."""
    missing = [name for name in members(protocol) if not hasattr(thing, name)]
    expect(
        not missing,
        f"{type(thing).__name__} lacks {', '.join(missing)}: see {protocol.__module__}.{protocol.__name__}.",
    )
