"""Token maps to images."""

from __future__ import annotations

import torch

from varlab.bench.random_networks import model
from varlab.bench.work import Part, Work, Works
from varlab.config import Config
from varlab.recipe.flops import FlopCounter
from varlab.sample.images import decode_maps


def works(config: Config, device: torch.device) -> Works:
    """A batch of random tokens through the codebook and the decoder of the run or of the configuration."""
    tokenizer, count, batch = model(config, device).tokenizer, FlopCounter(), config["batch"]
    draw = torch.Generator().manual_seed(config["seed"])
    maps = [torch.randint(tokenizer.vocab_size, (batch, h * w), generator=draw).to(device) for h, w in tokenizer.scales]

    def turn() -> int:
        return len(decode_maps(tokenizer, maps))

    decode = Work(
        name="images of token maps",
        turn=turn,
        flops_per_image=count.sampling(0, tokenizer, guided=False),
        parts=[
            Part(name="codes", owner=tokenizer, method="embed"),
            Part(name="sum of the scales", owner=tokenizer, method="accumulate"),
            Part(name="decoder", owner=tokenizer, method="decode"),
        ],
    )
    return Works(title=f"batch {batch}", works=[decode], facts=count.note())
