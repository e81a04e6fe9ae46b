"""One update of a tokenizer and of its discriminator, as the task makes it once the adversarial loss is at its full weight."""

from __future__ import annotations

import torch
from torch import nn

from varlab.bench.random_networks import model, perceptual
from varlab.bench.synthetic_data import SyntheticData
from varlab.bench.work import Part, Work, Works
from varlab.config import Config
from varlab.recipe.flops import FlopCounter
from varlab.recipe.objects import make
from varlab.recipe.plan import parameters
from varlab.rng import Rng
from varlab.tasks import TokenizerTask, tokenizer_task
from varlab.tasks.base import ENDLESS


def works(config: Config, device: torch.device) -> Works:
    """The update of the tokenizer of the run or of the configuration."""
    tokenizer, count = model(config, device).tokenizer, FlopCounter()
    discriminator: nn.Module | None = None
    if config["discriminator"] is not None:
        with Rng(config["seed"]).scope("init/discriminator"):
            discriminator = make(config["discriminator"])
    task: TokenizerTask = make(config["task"])(
        tokenizer=tokenizer,
        discriminator=discriminator,
        perceptual=perceptual(config, device),
        rng=Rng(config["seed"]),
    )
    task.to(device).total_images = ENDLESS
    task.images = task.gan.start + task.gan.warmup + task.gan.ramp
    task.train_flops_per_image = count.trained(tokenizer, tokenizer.image_size)
    if discriminator is not None:
        task.disc_flops_per_image = task.gan.passes * count.trained(discriminator, tokenizer.image_size)
    data = SyntheticData(size=tokenizer.image_size, classes=["0"], batch=config["batch"], seed=config["seed"])
    batch = data.samples("train").to(device)

    def turn() -> int:
        task.training_step(batch, 0)
        return len(batch)

    update = Work(
        name="update of a tokenizer",
        turn=turn,
        flops_per_image=task.flops_at(task.images + 1) - task.flops_at(task.images),
        parts=_parts(task),
    )
    facts = {"parameters": parameters(tokenizer), **count.note()}
    return Works(title=f"batch {config['batch']}", works=[update], facts=facts)


def _parts(task: TokenizerTask) -> list[Part]:
    named = [
        ("encoder", task.model, "latents"),
        ("quantizer", task.model, "quantize"),
        ("decoder", task.model, "forward"),
        ("gradient of the losses", torch.autograd, "grad"),
        ("adaptive λ", tokenizer_task, "last_layer_gradients"),
        ("adaptive λ", tokenizer_task, "measure_lambda"),
        ("backward", torch.autograd, "backward"),
        ("clip", task, "average"),
        ("clip", task, "clip_to"),
        ("EMA", task.ema, "update"),
        ("optimizers", task.optims[0], "step"),
    ]
    if task.perceptual is not None:
        named.append(("perceptual", task.perceptual, "forward"))
    if task.discriminator is not None:
        named.append(("discriminator", task.discriminator, "forward"))
        named.append(("optimizers", task.optims[1], "step"))
        named.append(("update of the discriminator", tokenizer_task, "discriminate"))
    closed = ("adaptive λ", "update of the discriminator")
    return [Part(name=name, owner=owner, method=method, closed=name in closed) for name, owner, method in named]
