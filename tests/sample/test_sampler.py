"""The sampling loop equals a plain one, and does no work twice: counted by operation, not by time."""

from __future__ import annotations

import weakref
from collections import Counter
from functools import partial

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils._python_dispatch import TorchDispatchMode

from tests.sample.reference import reference_sample
from varlab.order import NextScale, Permutation
from varlab.order.paths import raster
from varlab.rng import Rng
from varlab.sample import Sampler
from varlab.tokenizer import VQTokenizer
from varlab.transformer import Cache, LlamaBlock, RMSHeadNorm, SharedAdaLNBlock, Transformer, working_copy
from varlab.transformer.blocks.mlp import FastGELU
from varlab.transformer.cast_linear import CastLinear

V, CLASSES, B = 64, 5, 3
SCALES = {"next_scale": [[1, 1], [2, 2], [3, 3], [4, 4]], "shared": [[1, 1], [2, 2], [4, 4]], "raster": [[4, 4]]}
LLAMA = dict(
    token_inputs=True,
    embed={"start": False, "position": False, "level": False},
    rotary=10000.0,
    head_bias=False,
    block=partial(LlamaBlock, mlp_ratio=4.0, multiple_of=16, kv_heads=2, norm_eps=1e-5, dropout=0.0),
    head_norm=partial(RMSHeadNorm, norm_eps=1e-5),
)
KINDS = {"next_scale": {}, "shared": {"block": SharedAdaLNBlock}, "raster": LLAMA}


def parts(kind: str) -> dict:
    """Order, tokenizer and a transformer whose logits differ enough to matter."""
    with Rng(0).scope("init"):
        tokenizer = VQTokenizer(
            scales=SCALES[kind], vocab_size=V, code_dim=8, channels=8, channel_mult=[1, 1], groups=4, code_init=50.0
        )
        order = Permutation(scales=SCALES[kind], path=raster) if kind == "raster" else NextScale(scales=SCALES[kind])
        transformer = Transformer(
            vocab_size=V,
            code_dim=8,
            num_classes=CLASSES,
            positions_P3=order.positions_P3,
            source_positions=False,
            width=32,
            depth=3,
            heads=4,
            **KINDS[kind],
        )
        for weight in transformer.parameters():
            nn.init.normal_(weight, std=0.15)
    return {"transformer": transformer.eval(), "order": order, "tokenizer": tokenizer.eval()}


def whom() -> dict:
    return {"label_B": torch.arange(B), "ids_B": torch.arange(B) + 7, "rng": Rng(3)}


SETTINGS = [
    {"cfg": 1.5, "ramp": "linear", "top_k": 20, "top_p": 0.9},
    {"cfg": 2.0, "ramp": "constant", "top_k": 0, "top_p": 1.0},
    {"cfg": 1.0, "ramp": "constant", "top_k": 7, "top_p": 0.96, "cfg_steps": 2},
    {"cfg": 1.5, "ramp": "linear", "top_k": 1, "top_p": 1.0, "cfg_steps": 1},
    {"cfg": 0.0, "top_k": 0, "top_p": 0.8, "temperature": 1.3},
]


class Steps(Sampler):
    """A sampler that keeps the logits it filters."""

    def filter(self, logits_BlV: Tensor, k: int) -> Tensor:
        self.__dict__.setdefault("logits", []).append(logits_BlV)
        return super().filter(logits_BlV, k)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", SETTINGS)
def test_tokens_and_logits_equal_the_plain_loop(kind: str, settings: dict) -> None:
    sampler, expected = Steps(**settings), []
    maps = sampler(**parts(kind), **whom())
    plain = reference_sample(sampler, **parts(kind), **whom(), logits_of_steps=expected)
    assert all(torch.equal(a, b) for a, b in zip(maps, plain, strict=True))
    for logits, exact in zip(sampler.__dict__["logits"], expected, strict=True):
        assert (logits - exact).norm() <= 1e-5 * exact.norm()


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("kind", KINDS)
def test_logits_under_autocast_are_near_float32(kind: str) -> None:
    """Greedily, along the tokens that float32 would choose first."""
    sampler, expected = Steps(cfg=0.0, top_k=1, top_p=1.0), []
    reference_sample(sampler, **parts(kind), **whom(), logits_of_steps=expected)
    with torch.autocast("cpu", torch.bfloat16):
        sampler(**parts(kind), **whom())
    first = sampler.__dict__["logits"][0]
    assert first.dtype == torch.float32
    assert 0 < (first - expected[0]).norm() <= 2e-2 * expected[0].norm()


class Count(TorchDispatchMode):
    """Counts casts to bf16 by shape, and calls by name."""

    def __init__(self) -> None:
        super().__init__()
        self.casts: Counter[tuple[int, ...]] = Counter()
        self.allocated: list[tuple[int, ...]] = []
        self.kept: set[torch.dtype] = set()
        self.rows: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func.name()
        if name.startswith("aten::_to_copy") and out.dtype == torch.bfloat16:
            self.casts[tuple(out.shape)] += 1
        if name.startswith("aten::new_empty") and out.ndim == 4:
            self.allocated.append(tuple(out.shape))
            self.kept.add(out.dtype)
        if name.startswith(("aten::addmm", "aten::mm")):
            self.rows.append(args[-2].shape[0])
        return out


@pytest.mark.usefixtures("bfloat16")
def test_weights_are_cast_once_a_call_whatever_the_steps() -> None:
    made = parts("raster")
    weights = Counter(tuple(m.weight.shape) for m in made["transformer"].modules() if isinstance(m, nn.Linear))
    before = {name: weight.clone() for name, weight in made["transformer"].state_dict().items()}
    made["transformer"].requires_grad_(False)  # then autocast itself would cast at every use
    with Count() as count, torch.autocast("cpu", torch.bfloat16):
        Sampler(cfg=1.0, ramp="constant", top_k=0, top_p=1.0)(**made, **whom())
    assert {shape: count.casts[shape] for shape in weights} == dict(weights)
    assert next(iter(count.casts)) == tuple(made["transformer"].head.weight.shape), "the largest, while most is free"
    after = made["transformer"].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


@pytest.mark.parametrize("kind", KINDS)
def test_the_cache_holds_the_slots_that_are_read_again(kind: str) -> None:
    made = parts(kind)
    with Count() as count:
        Sampler(cfg=1.0, ramp="constant", top_k=0, top_p=1.0)(**made, **whom())
    slots, heads = sum(made["order"].steps[:-1]), 2 if kind == "raster" else 4
    assert [shape for shape in count.allocated if shape[-1] == 8] == [(2 * B, heads, slots, 8)] * 2 * 3


@pytest.mark.usefixtures("bfloat16")
def test_under_autocast_the_cache_is_as_narrow_as_keys_and_values() -> None:
    with Count() as count, torch.autocast("cpu", torch.bfloat16):
        Sampler(cfg=1.0, ramp="constant", top_k=0, top_p=1.0)(**parts("raster"), **whom())
    assert count.kept == {torch.bfloat16}


def test_modulation_is_made_once_and_the_null_branch_ends_with_guidance() -> None:
    made = parts("next_scale")
    pointers = {
        m.weight.data_ptr(): name for name, m in made["transformer"].named_modules() if isinstance(m, nn.Linear)
    }
    calls: Counter[str] = Counter()
    rows: list[int] = []

    def note(module: nn.Module, args: tuple[torch.Tensor], _: object) -> None:
        name = pointers.get(module.weight.data_ptr(), "") if isinstance(module, CastLinear) else ""
        calls.update([name] if name.endswith("modulate") else [])
        rows.extend([len(args[0])] if name == "head" else [])

    with register_module_forward_hook(note):
        Sampler(cfg=1.0, ramp="constant", top_k=0, top_p=1.0, cfg_steps=2)(**made, **whom())
    assert len(calls) == 4 and set(calls.values()) == {1}
    assert rows == [B] * 4, "guidance comes before the head"


def test_a_cast_linear_is_the_layer_under_autocast() -> None:
    layer, x = nn.Linear(24, 40), torch.randn(2, 3, 24, generator=torch.Generator().manual_seed(0))
    cast = CastLinear(layer.weight, layer.bias, torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(cast(x), layer(x), rtol=1e-2, atol=1e-2)
    assert torch.equal(cast.weight, layer.weight.detach().bfloat16())


@pytest.mark.parametrize("gelu", ["tanh", "none"])
@pytest.mark.parametrize("make", [nn.GELU, FastGELU])
def test_a_working_copy_shares_float32_weights_and_joins_layer_and_gelu(make: type[nn.GELU], gelu: str) -> None:
    layers, x = nn.Sequential(nn.Linear(24, 40), make(approximate=gelu), nn.Linear(40, 8)), torch.randn(5, 24)
    copy = working_copy(layers, torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(copy(x), layers(x))
    assert [type(layer) for layer in copy] == [CastLinear, nn.Identity, CastLinear]
    assert copy[0].weight.data_ptr() == layers[0].weight.data_ptr()
    assert working_copy(layers.double(), torch.device("cpu")) is layers


def test_a_cache_sees_slots_beyond_its_length_and_keeps_nothing_after_them() -> None:
    k = torch.randn(1, 2, 5, 4)
    cache = Cache(length=3)
    kept = [weakref.ref(x._base) for x in cache.extend(0, k[:, :, :3], k[:, :, :3])]
    assert all(x() is not None for x in kept)
    keys, values = cache.extend(0, k[:, :, 3:], -k[:, :, 3:])
    assert torch.equal(keys, k) and torch.equal(values[:, :, 3:], -k[:, :, 3:])
    assert all(x() is None for x in kept), "the last step of a layer ends the need for its slots"
    with pytest.raises(KeyError):  # not with memory that nobody has written
        cache.extend(0, k[:, :, 3:], k[:, :, 3:])
