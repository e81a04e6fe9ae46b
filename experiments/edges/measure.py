"""Measure whether tokens depend on the edges: ``python measure.py RUN SHARDS`` prints nats per validation image.

The condition is the image's own edges, those of another crop of the same photograph, or an empty edge map.
"""

from __future__ import annotations

import sys

import torch
import torch.nn.functional as F
from torch import Tensor

import varlab
from varlab.data import ShardDataModule
from varlab.data.image.augment import Augment
from varlab.types import to_float


@torch.no_grad()
def main(run: str, shards: str) -> None:
    """Print a line for each condition."""
    torch.set_num_threads(1)
    model, keep = varlab.load(run), Augment(flip=False, crop=1.0, noise=0.0)
    data = ShardDataModule(path=shards, batch=1, eval_batch=1, seed=0, workers=0, augment=keep, cache_bytes=0)
    batch, classes = data.samples("val"), data.info.num_classes
    assert batch.cond_u8_B3HW is not None
    own = to_float(batch.cond_u8_B3HW)
    maps = [
        torch.cat(parts)
        for parts in zip(*(model.encode(to_float(p)) for p in batch.img_u8_B3HW.split(64)), strict=True)
    ]

    def nats(cond_B3HW: Tensor) -> float:
        total = 0.0
        for i in torch.arange(len(batch)).split(64):
            logits = model.logits(batch.label_B[i], [m[i] for m in maps], cond_BN=model.condition_tokens(cond_B3HW[i]))
            total += float(F.cross_entropy(logits.flatten(0, 1), maps[0][i].flatten(), reduction="sum"))
        return total / len(batch)

    # crops are sorted by number, then by photograph, so this is another crop of the same photograph
    other = own.roll(classes, 0)
    for name, cond in (("own edges", own), ("another crop's edges", other), ("no edges", torch.full_like(own, -1.0))):
        print(f"{name}: {nats(cond):.1f} nats")


if __name__ == "__main__":
    main(*sys.argv[1:])
