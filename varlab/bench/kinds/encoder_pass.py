"""Images to token maps."""

from __future__ import annotations

import torch

from varlab.bench.random_networks import model
from varlab.bench.synthetic_data import SyntheticData
from varlab.bench.work import Part, Work, Works
from varlab.config import Config
from varlab.recipe.flops import FlopCounter
from varlab.types import to_float


def works(config: Config, device: torch.device) -> Works:
    """A batch through the encoder and the quantizer of the run or of the configuration."""
    tokenizer, count = model(config, device).tokenizer, FlopCounter()
    size, batch = tokenizer.image_size, config["batch"]
    data = SyntheticData(size=size, classes=["0"], batch=batch, seed=config["seed"])
    img_u8_B3HW = data.samples("train").img_u8_B3HW.to(device)

    def turn() -> int:
        tokenizer.encode(to_float(img_u8_B3HW))
        return batch

    encode = Work(
        name="token maps of images",
        turn=turn,
        flops_per_image=count.encode(tokenizer, size),
        parts=[
            Part(name="encoder", owner=tokenizer.encoder, method="forward"),
            Part(name="encoder", owner=tokenizer.quant_conv, method="forward"),
            Part(name="quantizer", owner=tokenizer.quantizer, method="encode"),
        ],
    )
    return Works(title=f"batch {batch}", works=[encode], facts=count.note())
