"""Shard sets on disk: tars, index, tables, labels, storage."""
