"""Shards, packing, and the exact stream. Knows images and classes, never a model."""

from varlab.data.datamodule import ShardDataModule

__all__ = ["ShardDataModule"]
