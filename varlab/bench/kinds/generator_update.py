"""One update of a generator, as its task makes it: from token maps, or from images that are encoded first."""

from __future__ import annotations

import torch

from varlab.bench.random_networks import model
from varlab.bench.synthetic_data import SyntheticData
from varlab.bench.work import Part, Work, Works
from varlab.config import Config
from varlab.model import Model
from varlab.recipe.flops import FlopCounter
from varlab.recipe.objects import make
from varlab.recipe.plans.generator_plan import generator_cost
from varlab.rng import Rng
from varlab.tasks import GeneratorTask
from varlab.tasks.base import ENDLESS


def works(config: Config, device: torch.device) -> Works:
    """The update of the run or of the networks that the configuration names, with the tokens of all scales.

    Raises VarlabError for a tokenizer's run.
    """
    made = model(config, device)
    transformer, order = made.generator()
    task: GeneratorTask = make(config["task"])(
        transformer=transformer,
        order=order,
        tokenizer=made.tokenizer,
        rng=Rng(config["seed"]),
        condition=made.condition,
    )
    task.to(device).total_images = ENDLESS
    task.stages = None  # the first stage would be all that so few updates reach
    data = _data(config, made)
    count = FlopCounter()
    cost = generator_cost(made, data.info, count)
    keys = ("train_flops_per_image", "encode_flops_per_image", "condition_flops_per_image")
    batch = data.samples("train").to(device)

    def turn() -> int:
        task.training_step(batch, 0)
        return len(batch)

    update = Work(
        name="update of a generator",
        turn=turn,
        flops_per_image=sum(cost[key] for key in keys),
        parts=_parts(task, from_images=not config["tokens"]),
    )
    return Works(title=f"batch {config['batch']}", works=[update], facts=cost | count.note())


def _data(config: Config, made: Model) -> SyntheticData:
    tokenizer = made.tokenizer
    length = sum(h * w for h, w in tokenizer.scales)
    return SyntheticData(
        size=tokenizer.image_size,
        classes=made.classes,
        batch=config["batch"],
        seed=config["seed"],
        tokens=(length, tokenizer.vocab_size) if config["tokens"] else None,
    )


def _parts(task: GeneratorTask, *, from_images: bool) -> list[Part]:
    named = [
        *([("encode", task.tokenizer, "encode")] if from_images else []),
        ("order", task.order, "pack"),
        ("embed", task.model, "embed"),
        ("blocks", task.model, "trunk"),
        ("head", task.model.head, "forward"),
        ("loss", task, "loss"),
        ("backward", torch.autograd, "backward"),
        ("clip", task, "on_after_backward"),
        ("clip", task, "configure_gradient_clipping"),
        ("optimizer", task.optims[0], "step"),
        ("EMA", task.ema, "update"),
    ]
    return [Part(name=name, owner=owner, method=method) for name, owner, method in named]
