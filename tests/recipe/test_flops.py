"""FLOPs: what is counted equals a closed formula, so that orders can be matched; and budgets in FLOPs become images."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from tests import small
from tests.laws.conftest import load
from varlab.recipe.assembly import build_order, build_tokenizer, example_slots
from varlab.recipe.budget import budget_images
from varlab.recipe.flops import TRAINING, FlopCounter, _UncountedShapes, attention_flops, run_on_meta, visible_pairs
from varlab.recipe.objects import make
from varlab.rng import Rng
from varlab.sample.images import decode_maps
from varlab.types import VarlabError

VAR_256 = [[n, n] for n in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)]
CODE_DIM, VOCAB = 32, 4096


def tokenizer_of(scales: list[list[int]]) -> nn.Module:
    config = load("tokenizer", "multi") | {"channels": 8, "groups": 4, "code_dim": CODE_DIM, "vocab_size": VOCAB}
    return build_tokenizer(config | {"scales": scales}, Rng(0))


def var_shaped(depth: int, order, *, block: str = "tiny") -> nn.Module:
    """On the meta device: width 64·depth, heads = depth."""
    config = load("transformer", block) | {"width": 64 * depth, "depth": depth, "heads": depth}
    with torch.device("meta"):
        return make(
            config,
            vocab_size=VOCAB,
            code_dim=CODE_DIM,
            num_classes=1000,
            positions_P3=order.positions_P3,
            source_positions=not order.fixed,
        )


def counted(depth: int, order_name: str, scales: list[list[int]]) -> tuple[int, list[int]]:
    """(forward FLOPs as runs count them, tokens of each step)."""
    tokenizer = tokenizer_of(scales)
    order = build_order(load("order", order_name), tokenizer)
    slots = example_slots(order, tokenizer)
    model = var_shaped(depth, order)
    return FlopCounter().transformer(model, slots), list(order.steps)


def closed_form(depth: int, steps: list[int]) -> int:
    """Two operations a multiplication: word embedding, qkv and output, MLP of ratio 4, AdaLN once an image, head; and
    queries times keys and weights times values over the pairs that see each other.
    """
    D, L = 64 * depth, sum(steps)
    pairs = sum(length * sum(steps[: k + 1]) for k, length in enumerate(steps))
    per_token = CODE_DIM * D + depth * (3 + 1 + 8) * D * D + D * VOCAB
    per_image = depth * 6 * D * D + 2 * D * D
    return 2 * (L * per_token + per_image) + 4 * pairs * D * depth


@pytest.mark.parametrize("depth", [2, 3])
@pytest.mark.parametrize(
    ("order", "scales"),
    [
        ("next_scale", [[1, 1], [2, 2], [4, 4]]),
        ("raster", [[4, 4]]),
        ("raster", [[1, 1], [2, 2]]),
        ("random", [[4, 4]]),
    ],
)
def test_counted_equals_the_closed_formula(depth: int, order: str, scales: list[list[int]]) -> None:
    flops, steps = counted(depth, order, scales)
    assert flops == closed_form(depth, steps)


def test_var_d16_at_256_pixels_costs_what_it_should() -> None:
    flops, steps = counted(16, "next_scale", VAR_256)
    assert sum(steps) == 680 and flops == closed_form(16, steps)
    assert flops == pytest.approx(0.31e12, rel=0.05)
    pairs = sum(length * sum(steps[: k + 1]) for k, length in enumerate(steps))
    assert pairs / 680**2 == pytest.approx(0.62, abs=0.01)


def test_raster_d16_on_256_tokens_costs_what_it_should() -> None:
    assert counted(16, "raster", [[16, 16]])[0] == pytest.approx(0.107e12, rel=0.05)


@pytest.mark.parametrize("depth", [2, 3, 16, 30])
def test_var_has_73728_d_cubed_parameters_in_its_blocks(depth: int) -> None:
    order = build_order(load("order", "next_scale"), SimpleNamespace(scales=VAR_256))
    matrices = [p for p in var_shaped(depth, order).blocks.parameters() if p.ndim == 2]
    assert sum(p.numel() for p in matrices) == 73728 * depth**3


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6))
def test_visible_pairs_are_those_of_the_mask_rule(steps: list[int]) -> None:
    step_L = torch.repeat_interleave(torch.arange(len(steps)), torch.tensor(steps))
    slow = sum(int(step_L[j] <= step_L[i]) for i in range(len(step_L)) for j in range(len(step_L)))
    assert visible_pairs(step_L) == slow
    assert attention_flops(step_L, width=8, depth=3) == 4 * slow * 8 * 3


def test_convolutions_count_on_the_meta_device() -> None:
    """2 · places · kernel² · in · out; nothing is computed, so that a model of any size can be counted."""
    conv = nn.Conv2d(3, 8, 3, padding=1)
    assert FlopCounter().forward(conv, torch.empty(1, 3, 16, 16)) == 2 * 256 * 9 * 3 * 8
    assert all(p.device.type == "cpu" for p in conv.parameters())


def counted_by_torch(run: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as mode, torch.no_grad():
        run()
    return mode.get_total_flops()


def test_the_parts_of_a_tokenizer_cost_what_torch_counts() -> None:
    """One image each: encoding, decoding, and drawing, which goes twice through the transformer when guided."""
    tokenizer = tokenizer_of([[1, 1], [2, 2], [4, 6]])
    height, width = tokenizer.image_size
    meta = copy.deepcopy(tokenizer).to("meta")
    img = torch.zeros(1, 3, height, width, device="meta")
    maps = [torch.zeros(1, h * w, dtype=torch.int64, device="meta") for h, w in tokenizer.scales]
    count = FlopCounter()
    nearest = 2 * (1 + 4 + 24) * CODE_DIM * VOCAB  # a product in place, which torch does not count
    assert count.encode(tokenizer, (height, width)) == counted_by_torch(lambda: meta.encode(img)) + nearest
    assert count.decode(tokenizer) == counted_by_torch(lambda: meta.decode(meta.blank(1))) > 10**6
    drawn = counted_by_torch(lambda: decode_maps(meta, maps))
    assert count.sampling(1000, tokenizer, guided=False) == 1000 + drawn > 10**6
    assert count.sampling(1000, tokenizer, guided=True) == 2000 + drawn
    assert not count.uncounted


class HalfFrozen(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.frozen, self.head = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def frozen_forward(self, img: torch.Tensor) -> torch.Tensor:
        return self.frozen(img)

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        return self.head(self.frozen_forward(img))


def test_what_is_trained_goes_back_twice_as_dear() -> None:
    """Three times forward; a frozen part goes forward alone."""
    first, head = 2 * 12 * 20 * 9 * 3 * 8, 2 * 12 * 20 * 8 * 2
    assert FlopCounter().trained(HalfFrozen(), (12, 20)) == first + 3 * head
    assert FlopCounter().trained(nn.Conv2d(3, 8, 3, padding=1), (12, 20)) == 3 * first


class InPlace(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.new_zeros(4, 5).addmm_(x, x.new_zeros(3, 5))


def test_products_in_place_count() -> None:
    count = FlopCounter()
    assert count.forward(InPlace(), torch.zeros(4, 3)) == 2 * 4 * 3 * 5 and not count.uncounted


def test_what_is_not_counted_keeps_its_shapes_and_types() -> None:
    x = torch.zeros(2, 6, 4, 5, device="meta", dtype=torch.bfloat16)
    with _UncountedShapes():
        made, mean, deviation = torch.native_group_norm(x, None, None, 2, 6, 20, 3, 1e-5)
        large = nn.functional.interpolate(x, size=(7, 9), mode="bicubic")
    assert (made.shape, mean.shape, deviation.shape) == (x.shape, (2, 3), (2, 3))
    assert large.shape == (2, 6, 7, 9) and {t.device.type for t in (made, mean, large)} == {"meta"}
    assert large.dtype == made.dtype == torch.bfloat16


def test_a_run_on_meta_copies_needs_fitting_shapes() -> None:
    run_on_meta(nn.Linear(3, 2), torch.zeros(1, 3))
    with pytest.raises(RuntimeError, match="reduction dim"):
        run_on_meta(nn.Linear(3, 2), torch.zeros(1, 4))


@given(per_image=st.integers(1, 10**9), batch=st.integers(1, 512), asked=st.floats(1, 1e13))
def test_a_budget_in_flops_is_spent_to_the_batch(per_image: int, batch: int, asked: float) -> None:
    task = SimpleNamespace(flops_at=lambda images: images * per_image)
    images = budget_images({"images": None, "flops": asked}, task, batch)
    assert images % batch == 0 and task.flops_at(images) >= asked
    assert images == batch or task.flops_at(images - batch) < asked


@given(asked=st.integers(1, 10_000), batch=st.integers(1, 512))
def test_a_budget_in_images_rounds_up_to_batches(asked: int, batch: int) -> None:
    images = budget_images({"images": asked}, SimpleNamespace(), batch)
    assert images % batch == 0 and asked <= images < asked + batch


def test_orders_at_equal_flops(lab: Path, tmp_path: Path) -> None:
    asked, spent, batches = 4e8, {}, {}
    for name in ("next_scale", "raster"):
        more = ("budget.images=null", f"budget.flops={asked}", "data.batch=16", "tensorboard=false")
        assert small.train(tmp_path / name, *small.RUNS[name], *more) == 0
        record = small.record(tmp_path / name)
        batches[name] = 16 * record["cost"]["train_flops_per_image"]
        spent[name] = record["outcome"]["flops"]
        assert asked <= spent[name] < asked + batches[name]
        assert spent[name] == record["budget"]["flops"] == small.lines(tmp_path / name)[-1]["flops"]
        assert (
            record["outcome"]["tokenizer_flops"]
            > record["outcome"]["images"] * record["cost"]["encode_flops_per_image"]
        )
    assert abs(spent["next_scale"] - spent["raster"]) < max(batches.values())


def test_the_discriminator_counts_from_where_it_starts(lab: Path) -> None:
    cost, outcome = (small.record(lab / "multi")[key] for key in ("cost", "outcome"))
    judged = outcome["images"] - 96
    expected = outcome["images"] * cost["train_flops_per_image"] + judged * cost["disc_flops_per_image"]
    assert outcome["flops"] == expected and cost["disc_flops_per_image"] % (2 * TRAINING) == 0


class Peculiar(nn.Module):
    """A convolution that is known, and beside it what a plug-in may do."""

    def __init__(self, extra) -> None:
        super().__init__()
        self.conv, self.extra = nn.Conv2d(3, 8, 3, padding=1), extra

    def forward(self, img):
        return self.extra(self.conv(img))


@torch.library.custom_op("varlab_tests::kernel", mutates_args=())
def kernel(x: torch.Tensor) -> torch.Tensor:
    """A kernel of somebody's own, without a meta version."""
    return x * 2


@torch.library.custom_op("varlab_tests::only_elsewhere", mutates_args=(), device_types="cuda")
def only_elsewhere(x: torch.Tensor) -> torch.Tensor:
    return x * 2


KNOWN = 2 * 256 * 9 * 3 * 8


@pytest.mark.parametrize(
    ("extra", "uncounted"),
    [
        (lambda x: x * 2, set()),
        (lambda x: x if x.sum() > 0 else -x, set()),  # a value decides: counted by running it
        (lambda x: x + torch.ones(1), set()),  # made on a device of its own
        (torch.fft.fft2, {"aten._fft_c2c"}),
        (kernel, {"varlab_tests.kernel"}),
        (only_elsewhere, {"varlab_tests.only_elsewhere and what follows it"}),
    ],
)
def test_what_cannot_be_counted_ends_nothing_and_is_named(
    extra, uncounted: set[str], caplog: pytest.LogCaptureFixture
) -> None:
    count = FlopCounter()
    assert count.forward(Peculiar(extra), torch.zeros(1, 3, 16, 16)) == KNOWN
    assert count.uncounted == uncounted
    assert count.note() == ({"uncounted": sorted(uncounted)} if uncounted else {})
    assert [record.levelname for record in caplog.records] == ["WARNING"] * bool(uncounted)
    assert all(name in caplog.text for name in uncounted)


def test_a_budget_of_flops_that_cannot_be_kept_is_refused() -> None:
    with pytest.raises(VarlabError, match="Use budget"):
        budget_images({"flops": 1e9}, SimpleNamespace(flops_at=lambda images: 0), 8)
