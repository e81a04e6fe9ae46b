"""Shards, packing, and exact reading. Knows images and classes, never a model."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from varlab.data.base import BaseDataModule
    from varlab.data.shard_module import ShardDataModule
    from varlab.data.stream_module import StreamDataModule
    from varlab.data.token_module import TokenDataModule

__all__ = ["BaseDataModule", "ShardDataModule", "StreamDataModule", "TokenDataModule"]

_MODULES = {
    "BaseDataModule": "base",
    "ShardDataModule": "shard_module",
    "StreamDataModule": "stream_module",
    "TokenDataModule": "token_module",
}


def __getattr__(name: str) -> type[BaseDataModule]:
    """Import a data module on first use: packing needs none of them."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    data_module: type[BaseDataModule] = getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
    return data_module
