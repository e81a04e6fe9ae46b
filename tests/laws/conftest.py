"""Every tokenizer, order and transformer YAML under conf/, live at a size a test can afford. New files join by themselves."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from tests import bounds
from varlab.recipe.assembly import build_order, build_tokenizer, build_transformer
from varlab.recipe.preflight.fitted_settings import fitted_tokenizer
from varlab.rng import Rng
from varlab.testing.order_contract import CLASSES, OrderCase
from varlab.types import VarlabError

CONF = Path(__file__).parents[2] / "conf"
BASE = ("multi", "single")  # tokenizers that meet every order; the others meet two


def names(group: str) -> list[str]:
    return sorted(p.stem for p in (CONF / group).glob("*.yaml"))


def load(group: str, name: str) -> dict:
    """One group file with its own defaults resolved; a tokenizer that fits itself to the images is for 16 pixels."""
    config = copy.deepcopy(_composed(group)[name])
    return fitted_tokenizer(config, (16, 16)) if group == "tokenizer" else config


@cache
def _composed(group: str) -> dict[str, dict]:
    """All files of a group, composed at once, which takes Hydra hardly longer than one."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(overrides=[f"+{group}@{name}={name}" for name in names(group)])
    return {name: OmegaConf.to_container(config[name], resolve=True) for name in names(group)}


def shrunk(config: dict) -> dict:
    """A tokenizer's configuration with its structure, but few channels, codes and tokens."""
    small = config | {"channels": 8, "groups": 4, "vocab_size": 24, "code_dim": 6}
    small["channel_mult"] = config["channel_mult"][-3:] if len(config["channel_mult"]) < 5 else [1, 2, 4]
    if config["z_channels"] is not None:
        small["z_channels"] = 5
    if config["scales"][-1][0] > 4:
        small["scales"] = [[1, 1], [2, 2], [3, 3]] if len(config["scales"]) > 1 else [[4, 4]]
        if config["phi_count"] == len(config["scales"]):
            small["phi_count"] = len(small["scales"])
    return small


@cache
def small_tokenizer(name: str):
    """The tokenizer of a YAML, shrunk, in float64."""
    with bounds.float64():
        tokenizer = build_tokenizer(shrunk(load("tokenizer", name)), Rng(0)).eval()
    with torch.no_grad():  # an untrained codebook is nearly zero: give every code something to say
        tokenizer.quantizer.codebook.weight.copy_(Rng(1).stream("init", torch.arange(24)).normal(6))
    return tokenizer


@cache
def pairs() -> list[tuple[str, str]]:
    """(tokenizer, order) that fit each other; those that don't say so in a sentence, which another test reads.

    Tokenizers that are one and the same once they are shrunk (VAR's for 256, 512 and 1024 pixels) are tested once.
    """
    fitting = []
    distinct = {json.dumps(shrunk(load("tokenizer", name)), sort_keys=True): name for name in names("tokenizer")[::-1]}
    for tokenizer in sorted(distinct.values()):
        for order in names("order"):
            if tokenizer not in BASE and order not in ("next_scale", "random"):
                continue
            try:
                build_order(load("order", order), small_tokenizer(tokenizer))
            except VarlabError:
                continue
            fitting.append((tokenizer, order))
    return fitting


def small_transformer(name: str) -> dict:
    """A transformer's configuration with its kind of block, but narrow and shallow."""
    config = load("transformer", name) | {"width": 32, "depth": 2, "heads": 2, "drop_path": 0.1}
    if config["block"].get("multiple_of"):
        config["block"]["multiple_of"] = 8
    return config


@cache
def transformers() -> list[str]:
    """One of each kind: those that differ in size alone are tested once."""
    distinct: dict[str, str] = {}
    for name in names("transformer")[::-1]:
        config = small_transformer(name)
        del config["init"]
        distinct[json.dumps(config, sort_keys=True)] = name
    return sorted(distinct.values())


class World:
    """A tokenizer, an order, a batch of token maps, and a way to make transformers for them."""

    def __init__(self, tokenizer: str, order: str, batch: int = 3):
        self.tokenizer = small_tokenizer(tokenizer)
        self.order = build_order(load("order", order), self.tokenizer)
        self.case = OrderCase.drawn(self.order, self.tokenizer, batch=batch, atol=bounds.SAME)
        self.rng, self.ids_B, self.maps, self.label_B = (
            self.case.rng,
            self.case.ids_B,
            self.case.maps,
            self.case.label_B,
        )
        self.order_rng = self.rng.stream("order", self.ids_B)

    def transformer(self, name: str = "tiny"):
        config = small_transformer(name)
        config["init"] |= {"head": 1.0, "modulation": 0.5, "gamma": 1.0}  # loud enough for a change to be seen
        return build_transformer(
            config, tokenizer=self.tokenizer, order=self.order, num_classes=CLASSES, rng=Rng(2)
        ).eval()


def marked(pair: tuple[str, str]) -> tuple[pytest.MarkDecorator, ...]:
    """``numeric`` for what is computed under every instruction set: each tokenizer once, and both BASE in two orders."""
    tokenizer, order = pair
    return (
        (pytest.mark.numeric,) if order == "random" or (tokenizer in BASE and order in ("next_scale", "raster")) else ()
    )


def kinds() -> list[tuple[str, str]]:
    """The pairs without orders that differ from another one in their path alone."""
    paths = [order for order in names("order") if load("order", order)["_target_"].endswith(".Permutation")]
    return [pair for pair in pairs() if pair[1] not in paths or pair[1] == "raster"]


def fixture_over(pairs: list[tuple[str, str]]) -> Callable:
    """A decorator: a fixture with a value for each pair."""
    return pytest.fixture(
        params=[pytest.param(pair, marks=marked(pair)) for pair in pairs], ids=lambda p: f"{p[0]}-{p[1]}"
    )


@fixture_over(pairs())
def world(request) -> World:
    return World(*request.param)


@fixture_over(kinds())
def world_of_a_kind(request) -> World:
    """For laws in which a path has no say of its own."""
    return World(*request.param)


@pytest.fixture(
    params=[
        pytest.param((pair, name), marks=marked(pair))
        for pair in pairs()
        for name in transformers()
        if name == "tiny" or (pair[0] in BASE and pair[1] in ("next_scale", "raster", "random"))
    ],
    ids=lambda p: f"{p[0][0]}-{p[0][1]}-{p[1]}",
)
def modelled(request) -> tuple[World, str]:
    """A world and the name of a transformer: all kinds over two tokenizers in a few orders, one over all others."""
    (tokenizer, order), name = request.param
    return World(tokenizer, order), name
