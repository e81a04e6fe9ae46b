"""Every tokenizer, order and transformer YAML under conf/, live at a size a test can afford. New files join by themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from varlab.build import build_order, build_tokenizer, build_transformer
from varlab.rng import Rng
from varlab.types import VarlabError

CONF = Path(__file__).parents[2] / "conf"
CLASSES = 3


def names(group: str) -> list[str]:
    return sorted(p.stem for p in (CONF / group).glob("*.yaml"))


def load(group: str, name: str) -> dict:
    """One group file with its own defaults resolved."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(f"{group}/{name}")
    for part in group.split("/"):
        config = config[part]
    return OmegaConf.to_container(config, resolve=True)


def small_tokenizer(name: str):
    """The tokenizer of a YAML with its scales and structure, but few channels and codes."""
    config = load("tokenizer", name) | {"channels": 8, "groups": 4, "vocab_size": 24, "code_dim": 6}
    tokenizer = build_tokenizer(config, Rng(0)).eval()
    with torch.no_grad():  # an untrained codebook is nearly zero: give every code something to say
        tokenizer.quantizer.codebook.weight.copy_(Rng(1).stream("init", torch.arange(24)).normal(6))
    return tokenizer


def pairs() -> list[tuple[str, str]]:
    """(tokenizer, order) that fit each other; those that don't say so in a sentence, which another test reads."""
    fitting = []
    for tokenizer in names("tokenizer"):
        for order in names("order"):
            try:
                build_order(load("order", order), small_tokenizer(tokenizer))
            except VarlabError:
                continue
            fitting.append((tokenizer, order))
    return fitting


class World:
    """A tokenizer, an order, a batch of token maps, and a way to make transformers for them."""

    def __init__(self, tokenizer: str, order: str, batch: int = 3):
        self.tokenizer = small_tokenizer(tokenizer)
        self.order = build_order(load("order", order), self.tokenizer)
        self.rng = Rng(5)
        self.ids_B = torch.arange(batch) + 11
        self.label_B = torch.arange(batch) % CLASSES
        self.order_rng = self.rng.stream("order", self.ids_B)
        draws = self.rng.stream("maps", self.ids_B)
        self.maps = [
            draws.at(k).integers(self.tokenizer.vocab_size, length) for k, length in enumerate(self.order.lengths)
        ]

    def transformer(self, name: str = "tiny"):
        config = load("transformer", name) | {"width": 32, "depth": 2, "heads": 2}
        config["init"] |= {"head": 1.0, "modulation": 0.5, "gamma": 1.0}  # loud enough for a change to be seen
        return build_transformer(
            config, tokenizer=self.tokenizer, order=self.order, num_classes=CLASSES, rng=Rng(2)
        ).eval()


@pytest.fixture(params=pairs(), ids=lambda p: f"{p[0]}-{p[1]}")
def world(request) -> World:
    return World(*request.param)
