"""Laws 1 to 3 of the design, for every order and tokenizer YAML."""

from __future__ import annotations

import pytest
import torch

from tests.bounds import SAME
from varlab.order import BaseOrder, NextScale
from varlab.transformer.attention import Visible
from varlab.types import Order, Tokenizer, VarlabError

from .conftest import CLASSES, World, load, names, small_tokenizer

pytestmark = pytest.mark.usefixtures("in_float64")


def test_protocols(world: World) -> None:
    assert isinstance(world.order, Order)
    assert isinstance(world.tokenizer, Tokenizer)


def test_pack_equals_the_walk(world: World) -> None:
    fast, targets = world.order.pack(world.maps, world.tokenizer, world.order_rng)
    walk, walked_targets = BaseOrder.pack(world.order, world.maps, world.tokenizer, world.order_rng)
    assert torch.equal(targets, walked_targets)
    for field in ("tok_BL", "src_BL", "pos_BL", "level_L", "step_L"):
        assert torch.equal(getattr(fast, field), getattr(walk, field)), field
    torch.testing.assert_close(fast.x_BLC, walk.x_BLC, rtol=0, atol=SAME)


def test_maps_to_sequence_and_back(world: World) -> None:
    state = world.order.start(len(world.maps[0]), world.tokenizer, world.order_rng)
    for k in range(len(world.order.steps)):
        idx = world.order.targets(state, k, world.maps)
        assert idx.shape[1] == world.order.steps[k]
        state = world.order.advance(state, k, idx, world.tokenizer)
    assert all(torch.equal(a, b) for a, b in zip(world.order.finish(state), world.maps, strict=True))


def test_targets_lie_where_positions_say(world: World) -> None:
    slots, targets = world.order.pack(world.maps, world.tokenizer, world.order_rng)
    flat = torch.cat(world.maps, 1)
    assert torch.equal(flat.gather(1, slots.pos_BL), targets)
    assert torch.equal(slots.pos_BL.sort(1).values, torch.arange(world.order.num_positions).expand(len(flat), -1))
    assert torch.equal(world.order.positions_P3[slots.pos_BL[0], 2], slots.level_L)


def test_canvas_ends_as_the_whole_image(world: World) -> None:
    state = world.order.start(len(world.maps[0]), world.tokenizer, world.order_rng)
    for k in range(len(world.order.steps)):
        state = world.order.advance(state, k, world.order.targets(state, k, world.maps), world.tokenizer)
    whole = world.tokenizer.blank(len(world.maps[0]))
    for k, idx in enumerate(world.maps):
        whole = world.tokenizer.accumulate(whole, k, world.tokenizer.embed(idx))
    torch.testing.assert_close(world.order.canvas(state, world.tokenizer), whole, rtol=0, atol=SAME)


def test_no_peeking(modelled: tuple[World, str]) -> None:
    """Changing the tokens of step k changes no logit of steps <= k, and does change a later one."""
    world, transformer = modelled
    try:
        model = world.transformer(transformer)
    except VarlabError:
        return  # token inputs or rotary positions alone do not go with every order: refused in a sentence, tested elsewhere
    base, _ = world.order.pack(world.maps, world.tokenizer, world.order_rng)
    before = model(base, world.label_B)
    K = len(world.order.steps)
    for k in sorted({0, K // 2, K - 2}):
        landing = base.pos_BL[:, base.step_L == k]
        flat = torch.cat(world.maps, 1)
        changed = flat.scatter(1, landing, (flat.gather(1, landing) + 7) % world.tokenizer.vocab_size)
        slots, _ = world.order.pack(list(changed.split(world.order.lengths, 1)), world.tokenizer, world.order_rng)
        after = model(slots, world.label_B)
        early = base.step_L <= k
        torch.testing.assert_close(after[:, early], before[:, early], rtol=0, atol=SAME)
        assert (after[:, ~early] - before[:, ~early]).abs().max() > 1e-4


def test_prefix_slots_are_seen_by_all() -> None:
    step_L = torch.tensor([-2, -1, 0, 1, 1])
    allowed = Visible.of(step_L, step_L).allowed_qk
    assert allowed is not None
    assert torch.equal(allowed, step_L[None, :] <= step_L[:, None])


def test_visible_rules_agree_with_the_mask() -> None:
    for steps in ([0, 1, 2, 3], [0, 1, 1, 2], [0, 0], [5]):
        step_L = torch.tensor(steps)
        rule, mask = Visible.of(step_L, step_L), step_L[None, :] <= step_L[:, None]
        as_mask = torch.ones_like(mask).tril() if rule.causal else torch.ones_like(mask)
        assert torch.equal(rule.allowed_qk if rule.allowed_qk is not None else as_mask, mask)


def test_an_order_that_does_not_fit_says_so() -> None:
    with pytest.raises(VarlabError, match="needs a tokenizer of several scales"):
        NextScale(scales=[(4, 4)])
    tokenizer = small_tokenizer("multi")
    world = World("multi", "next_scale")
    assert tokenizer.scales == world.tokenizer.scales
    with pytest.raises(VarlabError, match="token_inputs"):
        world.transformer("tiny_gpt2")


def test_random_order_differs_by_sample_and_repeats_by_seed() -> None:
    world = World("single", "random", batch=8)
    paths = world.order.path_BP(8, torch.device("cpu"), world.order_rng)
    assert len({tuple(p.tolist()) for p in paths}) == 8
    assert torch.equal(paths, world.order.path_BP(8, torch.device("cpu"), world.order_rng))
    alone = world.rng.stream("order", world.ids_B[3:4])
    assert torch.equal(paths[3:4], world.order.path_BP(1, torch.device("cpu"), alone))


def test_group_files_name_the_class_once() -> None:
    for name in names("order"):
        assert "scales" not in load("order", name), "scales come from the live tokenizer"
    assert CLASSES > 1
