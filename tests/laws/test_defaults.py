"""Constructors have the defaults of the papers' models: a notebook needs no Hydra, and no number stands twice unequal."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import pytest
import torch

import varlab
from tests.laws.conftest import load
from varlab.order import NextScale
from varlab.sample import Sampler
from varlab.tokenizer import Quantizer, VQTokenizer
from varlab.transformer import AdaLNBlock, AdaLNHeadNorm, Transformer
from varlab.types import VarlabError

PUBLISHED = [
    (VQTokenizer, ("tokenizer", "var")),
    (Quantizer, ("tokenizer", "var")),
    (Transformer, ("transformer", "var_d16")),
    (Sampler, ("sampler", "var")),
]


def plain(value: Any) -> Any:
    """A default as YAML holds it."""
    if inspect.isclass(value):
        return value.__name__
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


@pytest.mark.parametrize(("constructor", "file"), PUBLISHED, ids=lambda x: getattr(x, "__name__", None))
def test_defaults_are_those_of_the_published_yaml(constructor: Callable[..., Any], file: tuple[str, str]) -> None:
    config = load(*file)
    parameters = {
        name: parameter.default
        for name, parameter in inspect.signature(constructor).parameters.items()
        if parameter.default is not parameter.empty and name in config
    }
    assert len(parameters) > 4
    for name, default in parameters.items():
        stored = config[name]
        if isinstance(stored, dict) and "_target_" in stored:  # a factory: the same class, its arguments its defaults
            assert stored["_target_"].rpartition(".")[2] == plain(default)
            own = {k: v for k, v in stored.items() if not k.startswith("_")}
            given = inspect.signature(default).parameters
            assert {key: given[key].default for key in own} == own
        else:
            assert plain(default) == stored, name


def test_a_notebook_builds_a_model_in_ten_lines() -> None:
    tokenizer = VQTokenizer(
        quantizer=Quantizer(scales=[[1, 1], [2, 2]], vocab_size=16, code_dim=4),
        channels=8,
        channel_mult=[1, 2],
        groups=4,
    )
    order = NextScale(scales=tokenizer.scales)
    transformer = Transformer(
        vocab_size=tokenizer.vocab_size,
        code_dim=tokenizer.code_dim,
        num_classes=3,
        positions_P3=order.positions_P3,
        source_positions=not order.fixed,
        width=16,
        depth=2,
        heads=2,
    )
    model = varlab.Model(
        tokenizer=tokenizer, order=order, transformer=transformer, sampler=Sampler(), classes=("a", "b", "c")
    )
    assert model.sample([0, 2], seed=1).shape == (2, 3, 4, 4)


def test_a_quantizer_is_an_object_or_its_arguments_but_not_both() -> None:
    quantizer = Quantizer(scales=[[2, 2]], vocab_size=8, code_dim=4, phi_count=0)
    build = partial(VQTokenizer, channels=8, channel_mult=[1, 2], groups=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        from_arguments = build(scales=[[2, 2]], vocab_size=8, code_dim=4, phi_count=0)
        assert build(quantizer=quantizer).state_dict().keys() == from_arguments.state_dict().keys()
    assert (from_arguments.vocab_size, from_arguments.scales) == (quantizer.vocab_size, quantizer.scales)
    with pytest.raises(VarlabError, match="vocab_size"):
        build(quantizer=quantizer, vocab_size=9)


def test_blocks_of_the_default_transformer_are_vars() -> None:
    parameters = inspect.signature(Transformer).parameters
    assert (parameters["block"].default, parameters["head_norm"].default) == (AdaLNBlock, AdaLNHeadNorm)
