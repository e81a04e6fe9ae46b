"""Run as ``python sharded_ranks.py DIR``, once per rank: every kind of training with full and with sharded weights."""

from __future__ import annotations

import json
import sys
from functools import partial
from pathlib import Path
from typing import Any

import varlab  # noqa: F401  before lightning, which needs its torchvision shim

from tiny_tasks import CLASSES, RNG, Ask, Kill, Killed, generator_task, tokenizer, train  # isort: skip

from lightning.pytorch import Callback
from torch import Tensor
from torch.distributed.tensor import DTensor

from tests.laws.conftest import load, small_transformer, transformers
from varlab.errors import Stopped
from varlab.recipe.assembly import build_order, build_transformer
from varlab.tasks import GeneratorTask, Task
from varlab.tasks.distributed import collectives

IMAGES, TOKENIZER = 32, tokenizer()


def of_kind(name: str) -> GeneratorTask:
    """A transformer of ``conf/transformer`` over 8-pixel images, in the order that suits its inputs."""
    config = small_transformer(name)
    order = build_order(load("order", "raster" if config["token_inputs"] else "next_scale"), TOKENIZER)
    transformer = build_transformer(config, tokenizer=TOKENIZER, order=order, num_classes=CLASSES, rng=RNG)
    label_drop = 0.0 if config["tied"] else 0.3
    return generator_task(transformer=transformer, order=order, tokenizer=TOKENIZER, clip=None, label_drop=label_drop)


VARIANTS: dict[str, Any] = {
    **{name: partial(of_kind, name) for name in transformers()},
    "micro_batches": partial(generator_task, clip=None, micro_batch=2),
    "no_average": partial(generator_task, clip=None, ema_decay=0.0),
    "clipped": partial(generator_task, clip=0.05),
}


class Alone(Callback):
    """What pictures do: rank 0 uses the averaged weights, as often as it likes, and without the others."""

    def on_train_batch_end(self, trainer: Any, task: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        with task.evaluation():
            for _ in range(2 if trainer.is_global_zero else 0):
                task.predict(batch)


def held(task: Task) -> tuple[int, int]:
    """Numbers of the weights, moments and averages that this rank has in memory, and in all."""
    tensors: list[Tensor] = [*task.model.state_dict().values(), *task.ema.state()["weights"].values()]
    tensors += [v for values in task.optims[0].state.values() for v in values.values() if v.ndim]
    local = [t.to_local() if isinstance(t, DTensor) else t for t in tensors]
    return sum(t.numel() for t in local), sum(t.numel() for t in tensors)


def stopped(folder: Path, *, shard: bool) -> str:
    """Rank 1 alone is asked to stop; then all go on. Returns the last message of this rank."""
    make = VARIANTS["micro_batches"]
    try:
        train(make(), folder, images=IMAGES, devices=2, shard=shard, every=1000, extra=(Ask(rank=1, after=16),))
    except Stopped as stop:
        train(make(), folder, images=IMAGES, devices=2, shard=shard)
        return str(stop)
    return "It was not stopped."


def main(directory: Path) -> None:
    held_by_name = {}
    for name, make in VARIANTS.items():
        for shard in (False, True):
            task = make()
            train(task, directory / f"{name}-{shard}", images=IMAGES, devices=2, shard=shard, extra=(Alone(),))
        held_by_name[name] = held(task)
    for first in (False, True):  # killed, and continued in the other way
        folder, make = directory / f"resumed-{first}", VARIANTS["micro_batches"]
        try:
            train(make(), folder, images=IMAGES, devices=2, shard=first, extra=(Alone(), Kill(24)))
        except Killed:
            train(make(), folder, images=IMAGES, devices=2, shard=not first, extra=(Alone(),))
    sentences = [stopped(directory / f"stopped-{shard}", shard=shard) for shard in (False, True)]
    (directory / f"rank{collectives.rank()}.json").write_text(
        json.dumps({"held": held_by_name, "sentences": sentences})
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
