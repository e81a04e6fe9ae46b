"""Laws 1 to 3 of the design, for every order and tokenizer YAML."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from varlab.order import NextScale
from varlab.testing import order_contract
from varlab.testing.order_contract import CLASSES, OrderCase
from varlab.transformer.attention import Visible
from varlab.transformer.step_groups import Group
from varlab.types import Order, Tokenizer, VarlabError

from .conftest import World, load, names, small_tokenizer

pytestmark = pytest.mark.usefixtures("in_float64")


LAWS = [
    order_contract.pack_equals_walk,
    order_contract.maps_come_back,
    order_contract.targets_lie_where_positions_say,
    order_contract.canvas_is_whole,
    order_contract.samples_do_not_mix,
    order_contract.conditions_come_first,
]


@pytest.mark.parametrize("law", LAWS, ids=lambda law: law.__name__)
def test_laws(world: World, law: Callable[[OrderCase], None]) -> None:
    law(world.case)


def test_protocols(world: World) -> None:
    assert isinstance(world.order, Order) and isinstance(world.tokenizer, Tokenizer)
    order_contract.sizes_fit(world.order, world.tokenizer)


def test_no_peeking(modelled: tuple[World, str]) -> None:
    world, transformer = modelled
    try:
        model = world.transformer(transformer)
    except VarlabError:
        return  # token inputs or rotary positions alone do not go with every order: refused in a sentence, tested elsewhere
    order_contract.nothing_peeks(world.case, model)


def test_prefix_slots_are_seen_by_all() -> None:
    step_L = torch.tensor([-2, -1, 0, 1, 1])
    assert torch.equal(shown(Visible.of(step_L, step_L), len(step_L)), step_L[None, :] <= step_L[:, None])


def test_visible_rules_agree_with_the_mask() -> None:
    for steps in ([0, 1, 2, 3], [0, 1, 1, 2], [0, 0], [5]):
        step_L = torch.tensor(steps)
        rule, mask = Visible.of(step_L, step_L), step_L[None, :] <= step_L[:, None]
        assert torch.equal(shown(rule, len(steps)), mask)
        assert not rule.causal or torch.equal(torch.ones_like(mask).tril(), mask)


def shown(rule: Visible, slots: int) -> Tensor:
    """Which keys each slot may read, by the mask, by the groups, or because there is neither."""
    if rule.allowed_qk is not None:
        return rule.allowed_qk
    shown_qk = torch.zeros(slots, slots, dtype=torch.bool)
    for group in rule.groups or (Group(0, slots),):
        shown_qk[group.start : group.end, : group.end] = True if group.mask_qk is None else group.mask_qk == 0
    return shown_qk if rule.groups or not rule.causal else shown_qk.tril()


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
