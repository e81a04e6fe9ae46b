"""Images from a generator: the sampling loop, and the decoder."""

from __future__ import annotations

import torch

from varlab.bench.random_networks import model
from varlab.bench.synthetic_data import SyntheticData
from varlab.bench.work import Part, Work, Works
from varlab.config import Config
from varlab.recipe.assembly import image_sampler
from varlab.recipe.flops import FlopCounter
from varlab.recipe.plans.generator_plan import generator_cost
from varlab.sample.draws import AddressedDraws
from varlab.sample.replay import Replay, called
from varlab.score import image_sampler as score_sampler
from varlab.score.image_sampler import ImageSampler


def works(config: Config, device: torch.device) -> Works:
    """A batch of samples of the run or of the networks that the configuration names."""
    made, count = model(config, device), FlopCounter()
    made.generator()
    data = SyntheticData(
        size=made.tokenizer.image_size, classes=made.classes, batch=config["batch"], seed=config["seed"]
    )
    source = image_sampler(
        made,
        data,
        seed=config["seed"],
        batch=config["batch"],
        compile=config["compile"],
        replay=Replay() if config["replay"] else called,
    )
    cost, ids_B = generator_cost(made, data.info, count), torch.arange(config["batch"])

    def turn() -> int:
        return sum(len(img_u8_B3HW) for img_u8_B3HW, _ in source.images(ids_B))

    samples = Work(
        name="samples of a generator",
        turn=turn,
        flops_per_image=cost["sampling_flops_per_image"] + cost["condition_flops_per_image"],
        parts=_parts(source),
    )
    return Works(title=f"batch {config['batch']}", works=[samples], facts=cost | count.note())


def _parts(source: ImageSampler) -> list[Part]:
    named = [
        ("order", source.order, "inputs"),
        ("order", source.order, "advance"),
        ("embed", source.transformer, "embed"),
        ("blocks", source.transformer, "trunk"),
        ("head", source.transformer.head, "forward"),
        ("filter", source.sampler, "filter"),
        ("draw", AddressedDraws, "pick"),
        ("decode", score_sampler, "decode_maps"),
        *([("CUDA graph", source.replay, "replayed")] if isinstance(source.replay, Replay) else []),
    ]
    if source.conditions is not None:
        named.append(("condition", source.conditions, "tokens"))
    return [Part(name=name, owner=owner, method=method) for name, owner, method in named]
