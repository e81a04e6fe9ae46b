"""Shards, packing, and the exact stream. Knows images and classes, never a model."""
