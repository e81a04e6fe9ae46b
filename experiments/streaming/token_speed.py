"""Measure how fast token maps of VAR's size (680 tokens per image) are read from shards in training order, on one core.

python experiments/streaming/token_speed.py OUT [IMAGES]
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

from varlab.data import TokenDataModule
from varlab.data.tokens import TokenSet, TokenShard, fingerprint, write_array, write_tokens

TOKENS, VOCAB, PER_SHARD = 680, 4096, 10_000


def write(out: Path, images: int) -> None:
    """Write random tokens: their values do not affect the speed."""
    rng = np.random.default_rng(0)
    shards = []
    for number in range(images // PER_SHARD):
        path = out / f"train-{number:06d}.npy"
        write_array(path, rng.integers(0, VOCAB, (PER_SHARD, 1, TOKENS), dtype=np.uint16))
        shards.append(TokenShard(path.name, PER_SHARD, fingerprint(path)))
    write_array(out / "train.labels.npy", rng.integers(0, 1000, images, dtype=np.int32))
    facts = {"views": 1, "tokens": TOKENS, "vocab_size": VOCAB, "bad": {}}
    write_tokens(TokenSet(folder=out, origin={"views": 0}, images={}, splits={"train": tuple(shards)}, **facts))


def main(out: Path, images: int) -> None:
    """Print the median images/s of ten rounds of 100,000 images: global shuffle, batches of 256, no workers."""
    torch.set_num_threads(1)
    out.mkdir(parents=True, exist_ok=True)
    write(out, images)
    data = TokenDataModule(path=str(out), batch=256, eval_batch=256, seed=0, workers=0)
    batches = iter(data.train_loader(0, 1 << 40, 0, 1))
    # one epoch first, so that files are mapped, hashes checked and pages in memory
    for _ in range(images // 256):
        next(batches)
    rates = []
    for _ in range(10):
        start, done = time.perf_counter(), 0
        while done < 100_000:
            done += len(next(batches))
        rates.append(done / (time.perf_counter() - start))
    low, high = min(rates), max(rates)
    sys.stdout.write(f"{statistics.median(rates):,.0f} images/s ({low:,.0f} to {high:,.0f}), {TOKENS} tokens each\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 200_000)
