"""Measure how well an epoch is mixed with a number of open shards: 1281 shards of 1000 samples, sorted by class."""

from __future__ import annotations

import sys

import numpy as np

from varlab.data.read.epoch_order import EpochOrder, quality

SHARDS, EACH, CLASSES, BATCH = 1281, 1000, 1000, 256


def main() -> None:
    """Print a row for each number of open shards; a full shuffle has 1, 1 and 0."""
    shard_N = np.repeat(np.arange(SHARDS), EACH)
    label_N = np.arange(SHARDS * EACH) * CLASSES // (SHARDS * EACH)
    sys.stdout.write(
        "| open shards | shards in a batch | spread of classes | memory of the last epoch |\n|---|---|---|---|\n"
    )
    for open_shards in (1, 4, 16, 64, 256, None):
        order = EpochOrder(seed=0, shard_N=shard_N, open_shards=open_shards)
        mixing = quality(order, shard_N=shard_N, label_N=label_N, batch=BATCH)
        name = "all" if open_shards is None else open_shards
        sys.stdout.write(f"| {name} | {mixing['shards']:.3f} | {mixing['labels']:.2f} | {mixing['memory']:+.3f} |\n")


if __name__ == "__main__":
    main()
