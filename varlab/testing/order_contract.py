"""The laws of orders: what the transformer, the sampler and the training rely on without knowing which order runs."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from varlab.order import BaseOrder
from varlab.rng import Rng
from varlab.testing.expectation import expect, expect_close, require_members
from varlab.transformer import Cache, Transformer
from varlab.types import Maps, Order, Slots, Tokenizer

CLASSES = 3
HEARD = 1e-4  # a smaller change of a logit may be rounding
LOUD = {"std": None, "residual": True, "position": 1.0, "head": 1.0, "modulation": 0.5, "gamma": 1.0}
"""Initial weights with which a change of a token is seen in the logits."""


@dataclass
class OrderCase:
    """An order and a tokenizer, the token maps of a batch, and the samples' ids. atol: the largest difference of floats."""

    order: Order
    tokenizer: Tokenizer
    maps: Maps
    ids_B: Tensor
    rng: Rng
    atol: float

    @classmethod
    def drawn(
        cls, order: Order, tokenizer: Tokenizer, *, batch: int = 3, seed: int = 5, atol: float = 1e-4
    ) -> OrderCase:
        """With random maps."""
        ids_B, rng = torch.arange(batch) + 11, Rng(seed)
        draws = rng.stream("maps", ids_B)
        maps = [draws.at(k).integers(tokenizer.vocab_size, length) for k, length in enumerate(order.lengths)]
        return cls(order, tokenizer, maps, ids_B, rng, atol)

    @property
    def label_B(self) -> Tensor:
        return torch.arange(len(self.ids_B)) % CLASSES

    @property
    def name(self) -> str:
        return type(self.order).__name__

    def pack(self, maps: Maps | None = None, rows: slice = slice(None)) -> tuple[Slots, Tensor]:
        """The slots and targets of (other) maps, for some of the samples."""
        maps = [idx[rows] for idx in (self.maps if maps is None else maps)]
        return self.order.pack(maps, self.tokenizer, self.rng.stream("order", self.ids_B[rows]))

    def walk(self) -> object:
        """The state after all steps with the true tokens."""
        state = self.order.start(len(self.ids_B), self.tokenizer, self.rng.stream("order", self.ids_B))
        for k, length in enumerate(self.order.steps):
            idx_Bl = self.order.targets(state, k, self.maps)
            expect(
                idx_Bl.shape[1] == length,
                f"{self.name}.targets gives {idx_Bl.shape[1]} tokens at step {k}, where steps says {length}.",
            )
            state = self.order.advance(state, k, idx_Bl, self.tokenizer)
        return state


def small_transformer(order: Order, tokenizer: Tokenizer) -> Transformer:
    """A narrow transformer for this order."""
    with Rng(2).scope("init/transformer"):
        return Transformer(
            vocab_size=tokenizer.vocab_size,
            code_dim=tokenizer.code_dim,
            num_classes=CLASSES,
            positions_P3=order.positions_P3,
            source_positions=not order.fixed,
            width=32,
            depth=2,
            heads=2,
            init=LOUD,
        ).eval()


@torch.no_grad()
def check_order(order: Order, tokenizer: Tokenizer, *, batch: int = 3, seed: int = 5, atol: float = 1e-4) -> None:
    """Check all laws of an order over a tokenizer's scales. Raises VarlabError with the first that is broken."""
    require_members(order, Order)
    sizes_fit(order, tokenizer)
    case = OrderCase.drawn(order, tokenizer, batch=batch, seed=seed, atol=atol)
    for law in (pack_equals_walk, maps_come_back, targets_lie_where_positions_say, canvas_is_whole):
        law(case)
    samples_do_not_mix(case)
    conditions_come_first(case)
    transformer = small_transformer(order, tokenizer)
    nothing_peeks(case, transformer)
    if order.cached:
        sampler_sees_training(case, transformer)


def sizes_fit(order: Order, tokenizer: Tokenizer) -> None:
    """The order's lengths, steps and positions are those of the tokenizer's scales."""
    name, lengths = type(order).__name__, tuple(h * w for h, w in tokenizer.scales)
    expect(
        tuple(order.lengths) == lengths, f"{name}.lengths is {order.lengths}, but the tokenizer's maps have {lengths}."
    )
    expect(order.num_positions == sum(lengths), f"{name}.num_positions is {order.num_positions}, not {sum(lengths)}.")
    expect(sum(order.steps) == sum(lengths), f"{name}.steps sums to {sum(order.steps)}, not to {sum(lengths)} tokens.")
    shape = tuple(order.positions_P3.shape)
    expect(shape == (sum(lengths), 3), f"{name}.positions_P3 is {shape}, not (row, column, level) of each position.")


def pack_equals_walk(case: OrderCase) -> None:
    """``pack`` gives the slots and targets of the walk."""
    (fast, targets), rng = case.pack(), case.rng.stream("order", case.ids_B)
    walk, walked = BaseOrder.pack(case.order, case.maps, case.tokenizer, rng)  # type: ignore[arg-type]  # any order
    where = f"{case.name}.pack differs from the walk (start, inputs, targets, advance) in"
    expect(torch.equal(targets, walked), f"{where} the targets.")
    for field in fields(Slots):
        expect_close(getattr(fast, field.name), getattr(walk, field.name), case.atol, f"{where} {field.name}")
    expect(fast.step_L.device.type == "cpu", f"{case.name}: step_L must lie on the CPU, where masks are made.")


def maps_come_back(case: OrderCase) -> None:
    """maps → sequence → maps is the identity."""
    found = case.order.finish(case.walk())
    same = len(found) == len(case.maps) and all(torch.equal(a, b) for a, b in zip(found, case.maps, strict=True))
    expect(same, f"{case.name}.finish gives other maps than those whose tokens were advanced.")


def targets_lie_where_positions_say(case: OrderCase) -> None:
    """Each position is predicted once, its target is the token there, and its level is the slot's."""
    slots, targets_BL = case.pack()
    flat_BP, P = torch.cat(case.maps, 1), case.order.num_positions
    once = torch.equal(slots.pos_BL.sort(1).values, torch.arange(P).expand(len(flat_BP), -1))
    expect(once, f"{case.name}: pos_BL must name each of the {P} positions once.")
    there = torch.equal(flat_BP.gather(1, slots.pos_BL), targets_BL)
    expect(there, f"{case.name}: a target must be the token at its slot's pos_BL.")
    levels = torch.equal(case.order.positions_P3[slots.pos_BL[0], 2], slots.level_L)
    expect(levels, f"{case.name}: level_L must be the level of pos_BL.")
    expect(bool((slots.step_L.diff() >= 0).all()), f"{case.name}: slots must come in the order of their steps.")


def canvas_is_whole(case: OrderCase) -> None:
    """After the last step the canvas is the image of all tokens."""
    whole = case.tokenizer.blank(len(case.ids_B))
    for k, idx_Bl in enumerate(case.maps):
        whole = case.tokenizer.accumulate(whole, k, case.tokenizer.embed(idx_Bl))
    canvas = case.order.canvas(case.walk(), case.tokenizer)
    expect_close(canvas, whole, case.atol, f"{case.name}.canvas after the last step is not f_hat of all tokens")


def samples_do_not_mix(case: OrderCase) -> None:
    """A sample alone has the slots that it has in a batch; with ``fixed``, all have the same positions."""
    (together, _), (alone, _) = case.pack(), case.pack(rows=slice(1, 2))
    for name in ("x_BLC", "tok_BL", "src_BL", "pos_BL"):
        row = getattr(together, name)[1:2]
        what = f"{case.name}: {name} of a sample depends on the others in its batch"
        expect_close(getattr(alone, name), row, case.atol, what)
    same = torch.equal(together.pos_BL[:1].expand_as(together.pos_BL), together.pos_BL)
    expect(same or not case.order.fixed, f"{case.name}.fixed is true, but pos_BL differs between samples.")


def conditions_come_first(case: OrderCase) -> None:
    """``conditioned`` puts a condition's slots before the others, with negative steps, and changes none of them."""
    slots, _ = case.pack()
    cond_BN = torch.zeros(len(case.ids_B), 2, dtype=torch.int64)
    given = case.order.conditioned(slots, cond_BN, 0)
    first = (
        len(given) == len(slots) + 2
        and bool((given.step_L[:2] < 0).all())
        and torch.equal(given.tok_BL[:, :2], cond_BN)
    )
    expect(first, f"{case.name}.conditioned must put the condition's tokens first, at negative steps.")
    expect(torch.equal(given.pos_BL[:, 2:], slots.pos_BL), f"{case.name}.conditioned changes the image's slots.")


@torch.no_grad()
def nothing_peeks(case: OrderCase, transformer: Transformer) -> None:
    """Changing the tokens of step k changes no logit of steps ≤ k, and does change a later one."""
    base, _ = case.pack()
    before, K = transformer(base, case.label_B), len(case.order.steps)
    flat_BP = torch.cat(case.maps, 1)
    for k in sorted({0, K // 2, max(K - 2, 0)}):
        landing = base.pos_BL[:, base.step_L == k]
        other = flat_BP.scatter(1, landing, (flat_BP.gather(1, landing) + 7) % case.tokenizer.vocab_size)
        slots, _ = case.pack(list(other.split(tuple(case.order.lengths), 1)))
        moved_BL = (transformer(slots, case.label_B) - before).abs().amax(-1)
        early = base.step_L <= k
        peeks = f"{case.name}: a token of step {k} changes what is predicted at step {k} or before"
        expect_close(moved_BL[:, early], torch.zeros_like(moved_BL[:, early]), case.atol, peeks)
        seen = not bool((~early).any()) or float(moved_BL[:, ~early].max()) > HEARD
        expect(seen, f"{case.name}: a token of step {k} changes no later prediction; advance or inputs loses it.")


@torch.no_grad()
def sampler_sees_training(case: OrderCase, transformer: Transformer) -> None:
    """Step by step with a cache, along known tokens, the logits are those of teacher forcing."""
    slots, _ = case.pack()
    whole = transformer(slots, case.label_B)
    cache, parts = Cache(length=len(slots)), []
    state = case.order.start(len(case.label_B), case.tokenizer, case.rng.stream("order", case.ids_B))
    for k in range(len(case.order.steps)):
        parts.append(transformer(case.order.inputs(state, k, case.tokenizer), case.label_B, cache=cache))
        state = case.order.advance(state, k, case.order.targets(state, k, case.maps), case.tokenizer)
    expect_close(torch.cat(parts, 1), whole, case.atol, f"{case.name}: sampling sees other logits than training")
