"""Laws of conditions, for every order and tokenizer YAML; and of the window that slides beyond the trained size."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.bounds import SAME
from varlab.order import Permutation, Window
from varlab.order.paths import raster
from varlab.recipe.assembly import build_transformer
from varlab.rng import Rng
from varlab.sample import Sampler
from varlab.sample.large_image import sliding_window
from varlab.transformer import Cache, Transformer
from varlab.types import Slots, VarlabError

from .conftest import CLASSES, World, load

pytestmark = pytest.mark.usefixtures("in_float64")

PLAIN = dict(cfg=0.0, ramp="linear", temperature=1.0, top_k=0, top_p=1.0)
VOCAB, N = 7, 4


class Conditioned:
    """A world with N condition tokens, and a transformer that knows them."""

    def __init__(self, world: World, name: str = "tiny", tokens: int = N):
        self.world = world
        config = load("transformer", name) | {"width": 32, "depth": 2, "heads": 2}
        config["init"] |= {"head": 1.0, "modulation": 0.5, "gamma": 1.0}
        self.model: Transformer = build_transformer(
            config,
            tokenizer=world.tokenizer,
            order=world.order,
            num_classes=CLASSES,
            rng=Rng(2),
            cond_vocab=VOCAB,
            cond_tokens=tokens,
        ).eval()
        assert self.model.condition is not None
        self.model.condition.weight.data.mul_(10)  # untrained, it would seldom decide a token
        self.cond_BN = Rng(8).stream("cond", world.ids_B).integers(VOCAB, tokens)

    def slots(self, cond_BN: Tensor | None = None, maps: list[Tensor] | None = None) -> Slots:
        world = self.world
        slots, _ = world.order.pack(maps or world.maps, world.tokenizer, world.order_rng)
        return world.order.conditioned(slots, self.cond_BN if cond_BN is None else cond_BN, 0)

    def logits(self, slots: Slots) -> Tensor:
        with torch.no_grad():
            return self.model(slots, self.world.label_B)

    def draw(self, which: slice = slice(None), order=None, tokenizer=None, cond_BN: Tensor | None = None, **settings):
        world = self.world
        return Sampler(**(PLAIN | settings))(
            transformer=self.model,
            order=order or world.order,
            tokenizer=tokenizer or world.tokenizer,
            label_B=world.label_B[which],
            ids_B=world.ids_B[which],
            rng=world.rng,
            cond_BN=(self.cond_BN if cond_BN is None else cond_BN)[which],
        )


@pytest.fixture
def conditioned(world: World) -> Conditioned:
    return Conditioned(world)


@pytest.fixture
def conditioned_of_a_kind(world_of_a_kind: World) -> Conditioned:
    return Conditioned(world_of_a_kind)


# -- the prefix --------------------------------------------------------------------------------------------------------


def test_the_prefix_never_sees_the_image(conditioned: Conditioned) -> None:
    maps = [(idx + 5) % conditioned.world.tokenizer.vocab_size for idx in conditioned.world.maps]
    before, after = conditioned.logits(conditioned.slots()), conditioned.logits(conditioned.slots(maps=maps))
    torch.testing.assert_close(after[:, :N], before[:, :N], rtol=0, atol=SAME)
    assert (after[:, N:] - before[:, N:]).abs().max() > 1e-4


def test_a_condition_token_may_change_every_logit(conditioned: Conditioned) -> None:
    before = conditioned.logits(conditioned.slots())
    for n in range(N):
        other = conditioned.cond_BN.clone()
        other[:, n] = (other[:, n] + 1) % VOCAB
        change_BL = (conditioned.logits(conditioned.slots(other)) - before).abs().amax(-1)
        assert (change_BL > 1e-5).all(), n


def test_cache_equals_teacher_forcing(conditioned: Conditioned) -> None:
    world, cache, parts = conditioned.world, None, []
    whole = conditioned.logits(conditioned.slots())[:, N:]
    cache = Cache(length=world.order.num_positions + N)
    state = world.order.start(len(world.label_B), world.tokenizer, world.order_rng)
    for k, length in enumerate(world.order.steps):
        slots = world.order.conditioned(world.order.inputs(state, k, world.tokenizer), conditioned.cond_BN, k)
        with torch.no_grad():
            parts.append(conditioned.model(slots, world.label_B, cache=cache)[:, -length:])
        state = world.order.advance(state, k, world.order.targets(state, k, world.maps), world.tokenizer)
    torch.testing.assert_close(torch.cat(parts, 1), whole, rtol=SAME, atol=SAME)


@pytest.mark.parametrize("settings", [{}, {"cfg": 1.5, "top_k": 8}])
def test_sample_i_depends_on_seed_i_and_its_condition_alone(conditioned_of_a_kind: Conditioned, settings: dict) -> None:
    conditioned = conditioned_of_a_kind
    together = conditioned.draw(**settings)
    alone = conditioned.draw(slice(1, 2), **settings)
    assert all(torch.equal(a[1:2], b) for a, b in zip(together, alone, strict=True))
    other = conditioned.cond_BN.clone()
    other[1] = (other[1] + 1) % VOCAB
    changed = conditioned.draw(cond_BN=other, **settings)
    others_B = torch.tensor([True, False, True])
    assert all(torch.equal(a[others_B], b[others_B]) for a, b in zip(together, changed, strict=True))
    logits = conditioned.logits(conditioned.slots(other)) - conditioned.logits(conditioned.slots())
    assert (logits.abs().amax((1, 2)) > 1e-3).tolist() == [False, True, False]


# -- the sliding window ------------------------------------------------------------------------------------------------


@pytest.fixture
def trained() -> Conditioned:
    """A raster model with as many condition tokens as image tokens."""
    return Conditioned(World("single", "raster"), tokens=16)


def grown(trained: Conditioned, window: Window, grid: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Random tokens of a larger grid, and of its condition."""
    draws = Rng(4).stream("maps", trained.world.ids_B)
    P = grid[0] * grid[1]
    return draws.integers(trained.world.tokenizer.vocab_size, P), draws.at(1).integers(VOCAB, P)


@pytest.mark.parametrize("transformer", ["tiny", "tiny_gpt2"])
def test_at_the_trained_size_the_window_is_raster(transformer: str) -> None:
    trained = Conditioned(World("single", "raster"), transformer, tokens=16)
    world = trained.world
    window = Window(scales=world.order.scales, window=(4, 4), cond_grid=(4, 4))
    whole = trained.logits(trained.slots())[:, 16:]
    state = window.start(len(world.label_B), world.tokenizer)
    for k in range(16):
        slots = window.conditioned(window.inputs(state, k, world.tokenizer), trained.cond_BN, k)
        torch.testing.assert_close(trained.logits(slots)[:, -1], whole[:, k], rtol=SAME, atol=SAME)
        state = window.advance(state, k, window.targets(state, k, world.maps), world.tokenizer)
    assert torch.equal(window.finish(state)[0], world.maps[0])
    assert all(torch.equal(a, b) for a, b in zip(trained.draw(order=window), trained.draw(), strict=True))


@pytest.mark.parametrize("grid", [(4, 9), (7, 4), (6, 10)])
def test_a_window_holds_what_lies_around_the_token(trained: Conditioned, grid: tuple[int, int]) -> None:
    """Slots are those of training on the window's part of the image, and the condition's part beside them."""
    world = trained.world
    window, inside = Window(scales=[grid], window=(4, 4), cond_grid=(4, 4)), Permutation(scales=[(4, 4)], path=raster)
    tok_BP, cond_BP = grown(trained, window, grid)
    large = world.tokenizer.enlarged(grid)
    state = window.start(len(tok_BP), large)
    for k in range(grid[0] * grid[1]):
        (top, left), (row, column) = window.corner(k), divmod(k, grid[1])
        assert 0 <= top <= grid[0] - 4 and 0 <= left <= grid[1] - 4
        assert top <= row < top + 4 and left <= column < left + 4
        part, cond = (t.unflatten(1, grid)[:, top : top + 4, left : left + 4].flatten(1) for t in (tok_BP, cond_BP))
        expected = inside.conditioned(inside.pack([part], world.tokenizer)[0], cond, 0)
        slots = window.conditioned(window.inputs(state, k, large), cond_BP, k)
        length = len(slots)
        assert length == 16 + (row - top) * 4 + column - left + 1
        for field in ("x_BLC", "tok_BL", "src_BL", "pos_BL"):
            assert torch.equal(getattr(slots, field), getattr(expected, field)[:, :length]), field
        for field in ("level_L", "step_L"):
            assert torch.equal(getattr(slots, field), getattr(expected, field)[:length]), field
        state = window.advance(state, k, window.targets(state, k, [tok_BP]), large)
    whole = large.accumulate(large.blank(len(tok_BP)), 0, large.embed(tok_BP))
    torch.testing.assert_close(window.canvas(state, large), whole, rtol=SAME, atol=SAME)


def test_the_token_stands_in_the_middle_where_it_can() -> None:
    window = Window(scales=[(12, 12)], window=(4, 4))
    assert window.corner(5 * 12 + 6) == (3, 4) and window.corner(0) == (0, 0) and window.corner(143) == (8, 8)


def test_large_samples_belong_to_their_ids(trained: Conditioned) -> None:
    world, grid = trained.world, (5, 7)
    large = world.tokenizer.enlarged(grid)
    window = Window(scales=[grid], window=(4, 4), cond_grid=(4, 4))
    _, cond_BP = grown(trained, window, grid)
    (together,) = trained.draw(order=window, tokenizer=large, cond_BN=cond_BP)
    (alone,) = trained.draw(slice(1, 2), order=window, tokenizer=large, cond_BN=cond_BP)
    assert together.shape == (3, 35) and torch.equal(together[1:2], alone)


def test_a_sliding_window_without_a_raster_is_refused(trained: Conditioned) -> None:
    tokenizer = trained.world.tokenizer
    with pytest.raises(VarlabError, match="needs a model of order=raster"):
        sliding_window(World("single", "spiral_in").order, tokenizer, (8, 8), None)
    with pytest.raises(VarlabError, match="needs a model of order=raster"):
        sliding_window(World("multi", "next_scale").order, tokenizer, (8, 8), None)
    with pytest.raises(VarlabError, match="smaller than the window"):
        Window(scales=[(3, 8)], window=(4, 4))
    with pytest.raises(VarlabError, match="whole cells"):
        Window(scales=[(8, 8)], window=(4, 4), cond_grid=(6, 6))
    with pytest.raises(VarlabError, match="only samples: train with order=raster"):
        Window(scales=[(4, 4)], window=(4, 4)).pack(trained.world.maps, tokenizer)
    with pytest.raises(VarlabError, match="has one image size"):
        World("multi", "next_scale").tokenizer.enlarged((8, 8))


@pytest.mark.parametrize("order", ["raster", "random"])
def test_a_causal_condition_is_read_from_first_to_last(order: str) -> None:
    """VQGAN's mask is causal over condition and image: as if each condition token had a step of its own."""
    both, causal = (Conditioned(World("single", order)) for _ in range(2))
    causal.model.causal_condition = True
    slots = both.slots()
    in_turn = replace(slots, step_L=torch.cat([torch.arange(-N, 0), slots.step_L[N:]]))
    torch.testing.assert_close(causal.logits(slots), both.logits(in_turn), rtol=SAME, atol=SAME)
    assert (causal.logits(slots) - both.logits(slots)).abs().max() > 1e-6
    other = causal.cond_BN.clone()
    other[:, 2] = (other[:, 2] + 1) % VOCAB
    changed = (causal.logits(causal.slots(other)) - causal.logits(slots)).abs().amax((0, 2)) > 1e-9
    assert changed.tolist() == [i >= 2 for i in range(len(slots))]
    whole, alone = causal.draw(), causal.draw(slice(1, 2))
    assert all(torch.equal(a[1:2], b) for a, b in zip(whole, alone, strict=True))
