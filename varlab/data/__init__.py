"""Shards, packing, and the exact stream. Knows images and classes, never a model."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from varlab.data.shard_module import ShardDataModule
    from varlab.data.stream_module import StreamDataModule
    from varlab.data.token_module import TokenDataModule

    Data = ShardDataModule | StreamDataModule | TokenDataModule
    """What a training may be fed by."""

__all__ = ["Data", "ShardDataModule", "StreamDataModule", "TokenDataModule"]

_HOMES = {"ShardDataModule": "shard_module", "StreamDataModule": "stream_module", "TokenDataModule": "token_module"}


def __getattr__(name: str) -> Any:
    """Each module is imported when it is asked for: packing needs none of them, and Lightning takes its time."""
    if name == "Data":
        return Any
    if name not in _HOMES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
