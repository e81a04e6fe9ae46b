"""Shards, packing, the exact stream and webdataset's. Knows images and classes, never a model."""

from varlab.data.datamodule import ShardDataModule
from varlab.data.pipeline import StreamDataModule
from varlab.data.tokenmodule import TokenDataModule

__all__ = ["Data", "ShardDataModule", "StreamDataModule", "TokenDataModule"]

Data = ShardDataModule | StreamDataModule | TokenDataModule
"""What a training may be fed by."""
