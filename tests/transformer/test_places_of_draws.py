"""Where a transformer drops, each place has draws of its own; and its defaults are VAR-d16."""

from __future__ import annotations

import inspect
from functools import partial

import pytest
import torch

from varlab.cli.app import conf_dir
from varlab.rng import Rng, Stream
from varlab.transformer import AdaLNBlock, GPT2Block, LlamaBlock, SharedAdaLNBlock, Transformer
from varlab.types import Slots

DEPTH = 4
BLOCKS = {
    "adaln": AdaLNBlock,
    "shared": SharedAdaLNBlock,
    "gpt2": partial(GPT2Block, mlp_ratio=4.0),
    "llama": partial(LlamaBlock, mlp_ratio=4.0, multiple_of=8, kv_heads=None, norm_eps=1e-5, dropout=0.3),
}


def small(block: str) -> tuple[Transformer, Slots]:
    model = Transformer(
        vocab_size=5, code_dim=3, num_classes=2, positions_P3=torch.zeros(2, 3, dtype=torch.int64), source_positions=False,
        width=16, depth=DEPTH, heads=2, drop_path=0.3, dropout=0.3, block=BLOCKS[block],
    )  # fmt: skip
    zeros = torch.zeros(2, 2, dtype=torch.int64)
    return model, Slots(torch.zeros(2, 2, 3), zeros, zeros, zeros, zeros[0], torch.arange(2))


@pytest.mark.parametrize("block", BLOCKS)
def test_no_two_places_share_their_draws(block: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, slots = small(block)
    places: list[int] = []
    at = Stream.at
    monkeypatch.setattr(Stream, "at", lambda self, step: places.append(step) or at(self, step))
    model(slots, torch.zeros(2, dtype=torch.int64), rng=Rng(0), ids_B=torch.arange(2))
    assert len(places) == len(set(places)) > 2 * (DEPTH - 1)


def test_nothing_is_dropped_without_random_numbers_and_ids() -> None:
    model, slots = small("adaln")
    labels, ids = torch.zeros(2, dtype=torch.int64), torch.arange(2)
    plain = model(slots, labels)
    assert torch.equal(model(slots, labels, rng=Rng(0)), plain) and torch.equal(model(slots, labels, ids_B=ids), plain)
    assert not torch.equal(model(slots, labels, rng=Rng(0), ids_B=ids), plain)


def test_the_defaults_are_var_d16() -> None:
    """Width 64·16, stochastic depth 0.1·16/24, no dropout (VAR, models/__init__.py)."""
    defaults = {name: p.default for name, p in inspect.signature(Transformer).parameters.items()}
    assert (defaults["width"], defaults["depth"], defaults["heads"], defaults["dropout"]) == (1024, 16, 16, 0.0)
    assert defaults["drop_path"] == pytest.approx(0.1 * 16 / 24, abs=1e-6)
    assert defaults["init"] == {
        "std": None,
        "residual": True,
        "position": 1.0,
        "head": 0.02,
        "modulation": 0.5,
        "gamma": 1e-3,
    }
    assert "width: 1024" in (conf_dir() / "transformer" / "var_d16.yaml").read_text()
