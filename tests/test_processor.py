"""A processor without instructions for bfloat16 is asked for none of its products, and rounds where one with them does."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.laws.conftest import BASE, load, small_tokenizer, small_transformer, transformers
from tests.tasks.tiny_tasks import batch_at, classifier_task, generator_task, tokenizer_task
from varlab import processor
from varlab.recipe.assembly import build_order, build_transformer
from varlab.rng import Rng
from varlab.sample import Sampler
from varlab.sample.images import decode_maps
from varlab.transformer import step_groups
from varlab.transformer.attention import Visible

LABEL_B, IDS_B = torch.tensor([0, 1, 2]), torch.tensor([5, 3, 8])

PRODUCTS = ("mm", "addmm", "bmm", "baddbmm", "convolution", "convolution_backward", "_linear_pointwise")
FLASH = "_scaled_dot_product_flash_attention_for_cpu"


class Products(TorchDispatchMode):
    """Counts products of bfloat16 numbers by name."""

    def __init__(self) -> None:
        super().__init__()
        self.narrow: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in PRODUCTS or name.startswith(FLASH):
            self.narrow[name] += any(isinstance(x, Tensor) and x.dtype == torch.bfloat16 for x in args)
        return func(*args, **(kwargs or {}))


@pytest.fixture(params=[False, True], ids=["emulated", "instructions"])
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the processor has the instructions."""
    monkeypatch.setattr(processor, "multiplies_bfloat16", lambda: request.param)
    return request.param


def small_generator(name: str, order: str) -> dict[str, Any]:
    tokenizer = copy.deepcopy(small_tokenizer("multi" if order == "next_scale" else "single")).float()
    made = build_order(load("order", order), tokenizer)
    model = build_transformer(small_transformer(name), tokenizer=tokenizer, order=made, num_classes=3, rng=Rng(0))
    return {"transformer": model.float(), "order": made, "tokenizer": tokenizer}


def fitting() -> list[tuple[str, str]]:
    """(transformer, order): each in the order of its paper, and in a random one if it is told where it goes."""
    configs = {name: small_transformer(name) for name in transformers()}
    told = [(name, "random") for name, config in configs.items() if config["embed"]["position"]]
    return [(name, paper_order(config)) for name, config in configs.items()] + told


def paper_order(config: dict[str, Any]) -> str:
    return "raster" if config["token_inputs"] else "next_scale"


@pytest.mark.parametrize(("name", "order"), fitting())
def test_a_generator_learns_and_samples_without_emulated_products(name: str, order: str, instructions: bool) -> None:
    made = small_generator(name, order)
    model, tokenizer = made["transformer"], made["tokenizer"]
    draw = torch.Generator().manual_seed(0)
    maps = [torch.randint(tokenizer.vocab_size, (3, h * w), generator=draw) for h, w in tokenizer.scales]
    with torch.no_grad():
        slots, targets_BL = made["order"].pack(maps, tokenizer, Rng(1).stream("order", IDS_B))
    with Products() as products:
        with torch.autocast("cpu", torch.bfloat16):
            logits_BLV = model(slots, LABEL_B)
        F.cross_entropy(logits_BLV.float().flatten(0, 1), targets_BL.flatten()).backward()
    assert logits_BLV.dtype == torch.bfloat16, "what is kept is as narrow as with the instructions"
    assert bool(products.narrow.total()) == instructions, products.narrow
    sampler = Sampler(cfg=1.5 if model.has_null_class else 0.0, top_k=5, top_p=0.9)
    with Products() as products, torch.autocast("cpu", torch.bfloat16):
        sampler(**made, label_B=LABEL_B, ids_B=IDS_B, rng=Rng(3))
    assert bool(products.narrow.total()) == instructions, products.narrow


@pytest.mark.parametrize("name", transformers())
def test_logits_and_gradients_are_as_near_to_float32_as_with_instructions(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = small_generator(name, paper_order(small_transformer(name)))
    model, tokenizer = made["transformer"], made["tokenizer"]
    maps = [torch.arange(3 * h * w).view(3, -1) % tokenizer.vocab_size for h, w in tokenizer.scales]
    with torch.no_grad():
        slots, targets_BL = made["order"].pack(maps, tokenizer, None)

    def update(*, narrow: bool) -> list[Tensor]:
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=narrow):
            logits_BLV = model(slots, LABEL_B)
        F.cross_entropy(logits_BLV.float().flatten(0, 1), targets_BL.flatten()).backward()
        found = [logits_BLV.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]
        assert all(x.dtype == torch.float32 for x in found[1:])
        return found

    exact, errors = update(narrow=False), []
    for has in (False, True):
        monkeypatch.setattr(processor, "multiplies_bfloat16", lambda has=has: has)
        found = update(narrow=True)
        errors.append([float((x - y).norm() / y.norm().clamp_min(1e-6)) for x, y in zip(found, exact, strict=True)])
    emulated, instructed = (torch.tensor(of) for of in errors)
    assert emulated[0] <= 2e-2 and emulated.mean() <= 1.1 * instructed.mean() and emulated.mean() > 0


@pytest.mark.parametrize("kind", ["tokenizer", "generator", "classifier"])
def test_an_update_has_no_emulated_products(kind: str, instructions: bool) -> None:
    task = {"tokenizer": tokenizer_task, "generator": generator_task, "classifier": classifier_task}[kind]()
    task.total_images = 100
    task.images = 50  # with the discriminator
    with Products() as products, torch.autocast("cpu", torch.bfloat16):
        task.training_step(batch_at([3, 4, 5, 6]), 0)
    assert bool(products.narrow.total()) == instructions, products.narrow


@pytest.mark.parametrize("name", BASE)
def test_a_tokenizer_encodes_and_decodes_without_emulated_products(name: str, instructions: bool) -> None:
    tokenizer = copy.deepcopy(small_tokenizer(name)).float()
    with Products() as products, torch.autocast("cpu", torch.bfloat16):
        maps = tokenizer.encode(torch.rand(2, 3, *tokenizer.image_size))
        decode_maps(tokenizer, maps)
    assert bool(products.narrow.total()) == instructions, products.narrow


@pytest.mark.parametrize("slots", [5, 300])
@pytest.mark.parametrize("kept", [1 << 23, 0])
def test_attention_of_many_pairs_is_that_of_float32_rounded(
    slots: int, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether a layer keeps its probabilities, or leaves them to torch's flash attention."""
    monkeypatch.setattr(processor, "multiplies_bfloat16", lambda: False)
    monkeypatch.setattr(step_groups, "_KEPT", kept)
    step_L = torch.arange(slots) // 100
    visible = Visible.of(step_L, step_L) if slots > 100 else Visible.of(torch.arange(slots), torch.arange(slots))
    draw = torch.Generator().manual_seed(0)
    qkv = [torch.randn(2, 3, slots, 16, generator=draw).bfloat16().requires_grad_() for _ in range(3)]
    weight = torch.randn(2, 3, slots, 16, generator=draw).bfloat16()

    def found(tensors: list[Tensor]) -> list[Tensor]:
        out = step_groups.grouped_attention(*tensors, visible.groups, causal=visible.causal, scale=0.25)
        return [out, *torch.autograd.grad(out, tensors, weight.to(out.dtype))]

    with Products() as products:
        narrow = found(qkv)
    assert not products.narrow.total()
    for mine, exact in zip(narrow, found([x.detach().float().requires_grad_() for x in qkv]), strict=True):
        assert mine.dtype == torch.bfloat16
        assert (mine.float() - exact).norm() <= 1e-2 * exact.norm()
