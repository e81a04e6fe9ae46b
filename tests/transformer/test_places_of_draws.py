"""Where a transformer drops, each place has draws of its own; and its defaults are VAR-d16."""

from __future__ import annotations

import inspect
from functools import partial

import pytest
import torch

from varlab.cli.app import conf_dir
from varlab.rng import Rng, Stream
from varlab.transformer import AdaLNBlock, Cache, GPT2Block, LlamaBlock, SharedAdaLNBlock, Transformer
from varlab.transformer.attention import Attention
from varlab.types import Slots, VarlabError

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


def test_first_weights() -> None:
    """VAR: truncated normals of √(1/(3D)), outputs of branches over √(2·depth), a head and positions by their factors."""
    init = {"std": None, "residual": True, "position": 0.5, "head": 0.02, "modulation": 0.5, "gamma": 1e-3}
    with Rng(0).scope("init"):
        model = Transformer(
            vocab_size=500, code_dim=30, num_classes=400, positions_P3=torch.zeros(300, 3, dtype=torch.int64),
            source_positions=True, width=96, depth=3, heads=2, init=init,
        )  # fmt: skip
    std = (1 / 96 / 3) ** 0.5
    factors = {"head.weight": 0.02, "position.weight": 0.5, "source.weight": 1.0, "class_embedding.weight": 1.0}
    factors |= {"word.weight": 1.0, "head_norm.modulate.weight": 0.5, "blocks.1.attention.proj.weight": 6**-0.5}
    factors |= {"blocks.1.mlp.2.weight": 6**-0.5, "blocks.1.mlp.0.weight": 1.0, "blocks.1.attention.qkv.weight": 1.0}
    weights = dict(model.named_parameters())
    for name, factor in factors.items():
        assert float(weights[name].std()) == pytest.approx(std * factor, rel=0.04), name
    assert not any(bool(w.any()) for name, w in weights.items() if name.endswith("bias"))
    modulate = weights["blocks.1.modulate.weight"]
    assert float(modulate[: 2 * 96].std()) == pytest.approx(std * 1e-3, rel=0.04)
    assert float(modulate[2 * 96 :].std()) == pytest.approx(std * 0.5, rel=0.04)
    torch.testing.assert_close(model.blocks[0].attention.log_scale.exp(), torch.full((2, 1, 1), 4.0))
    assert 0.3 * std < float(weights["start"].std()) < 2 * std
    rates = [block.drop.rate for block in model.blocks]
    assert rates == pytest.approx([0.0, 0.0666667 / 2, 0.0666667]) and not AdaLNBlock.shares_modulation


def test_other_first_weights() -> None:
    """GPT-2's: 0.02 everywhere, and nothing divided."""
    init = {"std": 0.02, "residual": False, "position": 1.0, "head": 1.0, "modulation": 1.0, "gamma": 1.0}
    with Rng(0).scope("init"):
        model = Transformer(
            vocab_size=300, code_dim=30, num_classes=4, positions_P3=torch.zeros(300, 3, dtype=torch.int64),
            source_positions=False, width=64, depth=2, heads=2, init=init, block=partial(GPT2Block, mlp_ratio=4.0),
        )  # fmt: skip
    for name in ("head.weight", "position.weight", "blocks.1.attention.proj.weight", "blocks.1.mlp.2.weight"):
        assert float(model.get_parameter(name).std()) == pytest.approx(0.02, rel=0.04), name


@pytest.mark.parametrize(("scale", "bias", "heads"), [(0.25, "no_key", 2), (1.0, "all", 4), (1.0, "none", 2)])
def test_the_parts_of_an_attention(scale: float, bias: str, heads: int) -> None:
    made = Attention(width=16, heads=heads, qk_norm=False, scale=scale, bias=bias)
    assert made.softmax_scale == pytest.approx(scale / (16 / heads) ** 0.5) and made.log_scale is None
    kinds = {name for name, _ in made.named_parameters()}
    assert ("q_bias" in kinds, "k_bias" in kinds, "v_bias" in kinds, "proj.bias" in kinds) == (
        bias != "none", bias == "all", bias != "none", bias != "none",
    )  # fmt: skip
    assert (made.qkv_bias() is None) == (bias == "none")
    grouped = Attention(width=16, heads=4, qk_norm=True, scale=1.0, bias="none", kv_heads=2)
    assert grouped.qkv.weight.shape == (16 + 2 * 8, 16) and grouped.softmax_scale == 1.0
    with pytest.raises(VarlabError, match="multiple of kv_heads 3"):
        Attention(width=16, heads=4, qk_norm=True, scale=1.0, bias="none", kv_heads=3)


@pytest.mark.parametrize("first", [2, 3])
def test_the_first_slots_see_each_other(first: int) -> None:
    """VQGAN's n_unmasked; one by one, they cannot be sampled."""
    model = Transformer(
        vocab_size=5, code_dim=3, num_classes=2, positions_P3=torch.zeros(5, 3, dtype=torch.int64), source_positions=False,
        width=16, depth=1, heads=2, block=partial(GPT2Block, mlp_ratio=4.0), unmasked=first,
    )  # fmt: skip
    assert model._unmasked(torch.arange(5), None).tolist() == [first - 1] * first + list(range(first, 5))
    assert model._unmasked(torch.arange(first - 1), None).tolist() == [first - 2] * (first - 1)
    assert model._unmasked(torch.arange(first), Cache(length=5)).tolist() == [first - 1] * first
    with pytest.raises(VarlabError, match=f"first {first} tokens of this model see each other"):
        model._unmasked(torch.arange(1), Cache(length=5))
    later = Cache(length=5, steps=[torch.arange(first)])
    assert model._unmasked(torch.arange(4, 5), later).tolist() == [4]
    model.unmasked = 1
    assert model._unmasked(torch.arange(1), Cache(length=5)).tolist() == [0]


def test_nothing_is_recomputed_unless_it_is_asked_for() -> None:
    model, slots = small("gpt2")
    label_B, calls = torch.zeros(2, dtype=torch.int64), []
    for block in model.blocks:
        block.norm1.register_forward_hook(lambda *_: calls.append(1))
    model(slots, label_B).sum().backward()
    cond_BD = model.classes(label_B)
    context = model.context(slots, cond_BD, cache=None, rng=None, ids_B=None)
    model.trunk(model.embed(slots, cond_BD), context).sum().backward()
    assert len(calls) == 2 * DEPTH
    model(slots, label_B, recompute=True).sum().backward()
    assert len(calls) == 4 * DEPTH


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
    with torch.device("meta"):
        places = torch.zeros(680, 3, dtype=torch.int64, device="cpu")
        model = Transformer(vocab_size=4096, code_dim=32, num_classes=1000, positions_P3=places, source_positions=False)
    block = model.blocks[15]
    assert (len(model.blocks), block.attention.heads, block.attention.head_dim) == (16, 16, 64)
    assert block.mlp[0].out_features == 4096 and block.attention.log_scale is not None and model.unmasked == 0
    assert (model.start is None, model.position is None, model.level is None) == (False, False, False)
    assert model.rotary_Pd2 is None and model.head.bias is not None and not model.token_inputs and model.has_null_class
    assert model.condition is None and not model.causal_condition
    assert "width: 1024" in (conf_dir() / "transformer" / "var_d16.yaml").read_text()
