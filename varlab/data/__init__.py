"""Shards, packing, and the exact stream. Knows images and classes, never a model."""

from varlab.data.datamodule import ShardDataModule
from varlab.data.tokenmodule import TokenDataModule

__all__ = ["Data", "ShardDataModule", "TokenDataModule"]

Data = ShardDataModule | TokenDataModule
"""What a training may be fed by."""
