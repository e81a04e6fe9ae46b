"""Run as ``python traced_ranks.py DIR``, once per rank: a trace of one update of a generator."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import varlab  # noqa: F401  before lightning, which needs its torchvision shim

from tiny_tasks import CLASSES, RNG, SCALES, generator_task, tokenizer, train  # isort: skip

from lightning.pytorch import Callback
from torch.profiler import ProfilerActivity, profile

from varlab.order import NextScale
from varlab.tasks import GeneratorTask
from varlab.tasks.distributed import collectives
from varlab.transformer import Transformer


class Traced(Callback):
    """The second update."""

    def __init__(self, file: Path):
        self._file, self._profile = file, profile(activities=[ProfilerActivity.CPU])

    def on_train_batch_start(self, trainer: Any, task: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            self._profile.start()

    def on_train_batch_end(self, trainer: Any, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            self._profile.stop()
            self._profile.export_chrome_trace(str(self._file))


def generator(**changes: Any) -> GeneratorTask:
    """One of several buckets."""
    order = NextScale(scales=SCALES)
    places = {"positions_P3": order.positions_P3, "source_positions": False}
    with RNG.scope("init/transformer"):
        model = Transformer(vocab_size=16, code_dim=4, num_classes=CLASSES, width=128, depth=4, heads=2, **places)
    return generator_task(transformer=model, order=order, tokenizer=tokenizer(), **changes)


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    trace = Traced(folder / f"rank{os.environ['LOCAL_RANK']}.json")
    train(generator(micro_batch=2), folder / "run", images=16, devices=2, val_every=None, extra=(trace,))
    assert collectives.world_size() == 2
