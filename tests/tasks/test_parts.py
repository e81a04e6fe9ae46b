"""Schedules, parameter groups, EMA, bookkeeping."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from varlab.data.image.grid import grid
from varlab.tasks import WarmupDecay
from varlab.tasks.callbacks import passes
from varlab.tasks.update.code_use import Revival
from varlab.tasks.update.counters import Means, SkippedUpdates, Stopwatch
from varlab.tasks.update.ema import EMA
from varlab.tasks.update.optimizer import build_optimizer, forget_rows, parameter_groups, scale_learning_rate
from varlab.types import VarlabError

# -- schedules ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "middle", "last"), [("constant", 1.0, 1.0), ("linear", 0.6, 0.2), ("cosine", 0.6, 0.2)]
)
def test_schedule_passes_its_known_points(shape: str, middle: float, last: float) -> None:
    for warmup in (200, 0.2):
        schedule = WarmupDecay(warmup=warmup, start=0.1, shape=shape, end=0.2)
        points = [schedule.factor(images, 1000) for images in (0, 100, 200, 600, 1000)]
        assert points == pytest.approx([0.1, 0.55, 1.0, middle, last])


@pytest.mark.parametrize(
    ("shape", "quarter"),
    [
        ("constant", 1.0),
        ("linear", 0.8),
        ("cosine", 0.2 + 0.8 * (1 + 0.5**0.5) / 2),
        ("exponential", 0.2**0.25),
        ("sqrt", 0.6),
    ],
)
def test_a_quarter_of_each_decay(shape: str, quarter: float) -> None:
    """From 1 to 0.2, a quarter of the time after the warm-up; beyond the end it stays."""
    schedule = WarmupDecay(warmup=200, start=0.0, shape=shape, end=0.2)
    assert schedule.factor(400, 1000) == pytest.approx(quarter)
    assert (
        schedule.factor(1000, 1000) == schedule.factor(5000, 1000) == pytest.approx(1.0 if shape == "constant" else 0.2)
    )
    assert (schedule.hold, schedule.hold_pace, schedule.cooldown) == (0.0, 0.0, None)


@pytest.mark.parametrize("cooldown", [400, 0.4])
def test_a_cooldown_takes_the_last_images(cooldown: float) -> None:
    schedule = WarmupDecay(warmup=0.1, start=0.5, shape="linear", end=0.0, cooldown=cooldown)
    points = [schedule.factor(images, 1000) for images in (0, 50, 100, 599, 600, 700, 900)]
    assert points == pytest.approx([0.5, 0.75, 1.0, 1.0, 1.0, 0.75, 0.25])
    assert WarmupDecay(warmup=0, start=1.0, shape="linear", end=0.0, cooldown=0).factor(1000, 1000) == 1.0
    long = WarmupDecay(warmup=800, start=0.0, shape="linear", end=0.0, cooldown=cooldown)
    assert [long.factor(n, 1000) for n in (400, 800, 900)] == pytest.approx([0.5, 1.0, 0.5]), "after the warm-up alone"


def test_a_hold_without_a_pace_keeps_the_rate() -> None:
    """VAR's lin0: 1 for 5 % of the time, then linear; and half the way at half the pace at any hold."""
    held = WarmupDecay(warmup=0, start=1.0, shape="linear", end=0.0, hold=0.2)
    assert [held.factor(n, 100) for n in (0, 10, 20, 60, 100)] == pytest.approx([1.0, 1.0, 1.0, 0.5, 0.0])
    for ends in ({"hold": 0.0}, {"hold": 0.99}, {"hold_pace": 1.0}, {"warmup": 0}, {"warmup": 0.99}, {"warmup": 5000}):
        WarmupDecay(**({"warmup": 0, "start": 1.0, "shape": "linear", "end": 0.0} | ends))
    for beyond in (
        {"hold": 1.0},
        {"hold": -0.1},
        {"hold_pace": 1.1},
        {"cooldown": 1.0},
        {"cooldown": 0.1, "hold": 0.1},
    ):
        with pytest.raises(VarlabError, match="schedule"):
            WarmupDecay(**({"warmup": 0, "start": 1.0, "shape": "linear", "end": 0.0} | beyond))
    with pytest.raises(VarlabError, match="schedule"):
        WarmupDecay(warmup=0, start=1.0, shape="exponential", end=-0.1)


@given(
    st.sampled_from(["constant", "linear", "cosine"]),
    st.integers(0, 500) | st.floats(0, 0.99),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(1, 1000),
)
def test_schedule_rises_then_falls(shape: str, warmup: float, start: float, end: float, total: int) -> None:
    schedule = WarmupDecay(warmup=warmup, start=start, shape=shape, end=end)
    factors = [schedule.factor(images, total) for images in range(0, total + 1, max(total // 50, 1))]
    top = factors.index(max(factors))
    assert all(a <= b + 1e-12 for a, b in zip(factors[:top], factors[1 : top + 1], strict=True))
    assert all(a >= b - 1e-12 for a, b in zip(factors[top:-1], factors[top + 1 :], strict=True))
    assert min(factors) >= 0 and max(factors) <= 1


@pytest.mark.parametrize(("warmup", "shape"), [(1.0, "linear"), (-1, "linear"), (0, "step")])
def test_schedule_refuses_nonsense(warmup: float, shape: str) -> None:
    with pytest.raises(VarlabError, match="schedule"):
        WarmupDecay(warmup=warmup, start=0.0, shape=shape, end=0.0)


# -- optimizers --------------------------------------------------------------------------------------------------------


class _Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.table = nn.Linear(3, 3), nn.LayerNorm(3), nn.Embedding(4, 3)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)

    def no_weight_decay(self) -> set[str]:
        return {"table.weight"}


def test_only_matrices_that_are_not_spared_decay() -> None:
    net = _Net()
    decayed, plain = parameter_groups(net)
    assert [id(p) for p in decayed["params"]] == [id(net.linear.weight)]
    expected = {id(p) for p in (net.linear.bias, net.norm.weight, net.norm.bias, net.table.weight)}
    assert {id(p) for p in plain["params"]} == expected and plain["weight_decay"] == 0


def test_learning_rate_is_a_factor_of_the_base_and_survives_a_checkpoint() -> None:
    optimizer = build_optimizer(partial(torch.optim.AdamW, lr=0.5, weight_decay=0.1), _Net())
    scale_learning_rate(optimizer, 0.1)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    other = build_optimizer(partial(torch.optim.AdamW, lr=0.5, weight_decay=0.1), _Net())
    other.load_state_dict(optimizer.state_dict())
    scale_learning_rate(other, 0.2)
    assert other.param_groups[0]["lr"] == pytest.approx(0.1)


@pytest.mark.parametrize(("settings", "fused"), [({}, True), ({"fused": False}, False), ({"foreach": True}, None)])
def test_adamw_is_fused_unless_its_settings_say_otherwise(settings: dict[str, bool], fused: bool | None) -> None:
    optimizer = build_optimizer(partial(torch.optim.AdamW, **settings), _Net())
    assert [group["fused"] for group in optimizer.param_groups] == [fused, fused]


def test_forgotten_rows_have_no_moments_and_others_keep_theirs() -> None:
    table = nn.Parameter(torch.randn(4, 2))
    optimizer = torch.optim.Adam([table])
    table.grad = torch.ones(4, 2)
    optimizer.step()
    forget_rows(optimizer, table, torch.tensor([True, False, True, False]))
    for moment in ("exp_avg", "exp_avg_sq"):
        assert (optimizer.state[table][moment].sum(1) != 0).tolist() == [False, True, False, True]


def test_vars_schedule_with_a_slow_start_and_the_exponential_one() -> None:
    """VAR's lin0.3: half the pace until 30 % of the time, so 15 % of the way; its exp: end ** progress."""
    slow = WarmupDecay(warmup=0, start=1.0, shape="linear", end=0.0, hold=0.3, hold_pace=0.5)
    assert [round(slow.factor(i, 100), 12) for i in (0, 10, 30, 65, 100)] == [1.0, 0.95, 0.85, 0.425, 0.0]
    falling = WarmupDecay(warmup=0, start=1.0, shape="exponential", end=0.01)
    assert falling.factor(50, 100) == pytest.approx(0.1)
    with pytest.raises(VarlabError, match="never reaches"):
        WarmupDecay(warmup=0, start=1.0, shape="exponential", end=0.0)
    with pytest.raises(VarlabError, match="hold_pace 2"):
        WarmupDecay(warmup=0, start=1.0, shape="linear", end=0.0, hold=0.3, hold_pace=2)


# -- EMA ---------------------------------------------------------------------------------------------------------------


def test_ema_is_the_formula_in_float32() -> None:
    net = nn.BatchNorm1d(1)
    ema, expected = EMA(net, decay=0.5), 1.0
    for n, value in enumerate([3.0, 5.0, -2.0, 8.0, 1.0, 4.0, 9.0, 2.0, 6.0, 7.0]):
        with torch.no_grad():
            net.weight.fill_(value)
            net.num_batches_tracked.fill_(n)
        ema.update(net)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * value
        weights = ema.weights(net)
        assert weights["weight"].item() == pytest.approx(expected, rel=1e-5)
        assert weights["num_batches_tracked"].item() == n
    assert (1 + 9) / (10 + 9) > 0.5  # both branches of the minimum were taken


def test_swap_gives_the_average_and_then_the_weights_back_even_after_an_error() -> None:
    net = nn.Linear(2, 2)
    ema = EMA(net, decay=0.9)
    first = net.weight.clone()
    with ema.swap(net):  # before the first update there is no average
        assert torch.equal(net.weight, first)
    with torch.no_grad():
        net.weight.add_(1)
    ema.update(net)
    own = net.weight.clone()
    with pytest.raises(RuntimeError), ema.swap(net):
        assert torch.equal(net.weight, ema.weights(net)["weight"]) and not torch.equal(net.weight, own)
        raise RuntimeError
    assert torch.equal(net.weight, own)


def test_without_an_average_nothing_is_kept_and_the_weights_are_the_modules_own() -> None:
    net = nn.Linear(3, 2)
    ema = EMA(net, decay=0.0)
    with torch.no_grad():
        net.weight.fill_(2.0)
    ema.update(net)
    assert not ema.state()["weights"]
    assert torch.equal(ema.weights(net)["weight"], net.weight)
    with ema.swap(net):
        assert torch.equal(net.weight, torch.full((2, 3), 2.0))
    earlier = EMA(net, decay=0.5)
    earlier.update(net)
    ema.load_state(earlier.state())  # what an earlier version has written
    assert ema.updates == 1 and not ema.state()["weights"]


def test_ema_owns_its_tensors() -> None:
    net = nn.Linear(2, 2)
    ema = EMA(net, decay=0.9)
    ema.update(net)
    before = ema.weights(net)["weight"].clone()
    with torch.no_grad():
        net.weight.add_(100)
    assert torch.equal(ema.weights(net)["weight"], before)
    assert set(net.state_dict()) == {"weight", "bias"}


# -- bookkeeping -------------------------------------------------------------------------------------------------------


def test_three_faults_in_a_row_end_training_fewer_do_not() -> None:
    faults = SkippedUpdates()
    names, good, bad = ("loss", "norm"), torch.tensor([1.0, 2.0]), torch.tensor([1.0, math.nan])
    assert [faults.check("a", names, v, 0) for v in (bad, bad, good, bad, bad)] == [False, False, True, False, False]
    assert faults.check("b", names, good, 0)  # another optimizer's success does not wash this one clean
    restored = SkippedUpdates()
    restored.load_state(faults.state())
    with pytest.raises(VarlabError, match="norm not finite in 3 updates in a row"):
        restored.check("a", names, bad, 640)
    assert restored.total == 5


def test_means_survive_a_checkpoint() -> None:
    means = Means()
    means.add(("a", "b"), torch.tensor([1.0, 5.0]))
    other = Means()
    other.load_state(means.state())
    other.add(("a",), torch.tensor([3.0]))
    other.add(("c", "a"), torch.tensor([7.0, 5.0]))  # a name between those that are there
    assert other.values() == other.values() == {"a": 3.0, "b": 5.0, "c": 7.0}
    other.reset()
    assert other.values() == {}


def test_stopwatch_stands_still_when_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    watch = Stopwatch()
    watch.seconds = 10.0
    watch.start()
    now[0] = 2.0
    with watch.paused():
        now[0] = 50.0
    now[0] = 53.0
    assert watch.seconds == pytest.approx(15.0)


@given(st.integers(1, 100), st.integers(1, 40), st.integers(1, 60))
def test_each_multiple_is_acted_on_once_and_the_end_always(every: int, batch: int, batches: int) -> None:
    total = batch * batches
    acts = [n for n in range(batch, total + 1, batch) if passes(every, n - batch, n, total)]
    expected = {-(-m // batch) * batch for m in range(every, total + 1, every)} | {total}
    assert acts == sorted(expected)
    assert [n for n in range(batch, total + 1, batch) if passes(None, n - batch, n, total)] == [total]


def test_revival_rests_near_the_end() -> None:
    revival = Revival(every=100, until=0.5)
    assert revival.due(96, 104, 1000) and not revival.due(104, 112, 1000) and not revival.due(596, 604, 1000)


def test_revival_is_due_at_the_multiples_up_to_its_end() -> None:
    """until: a fraction, or a number of images."""
    for until in (0.5, 500):
        revival = Revival(every=100, until=until)
        assert [revival.due(n - 8, n, 1000) for n in (99, 100, 108, 492, 500, 508)] == [
            False, True, False, False, True, False,
        ]  # fmt: skip
    assert Revival(every=100, until=1).due(992, 1000, 1000) and not Revival(every=100, until=1.5).due(992, 1000, 1000)


def test_grid_places_images_row_by_row() -> None:
    img_u8_N3HW = torch.arange(5, dtype=torch.uint8)[:, None, None, None].expand(5, 3, 2, 2)
    picture: Any = grid(img_u8_N3HW, columns=3)
    assert picture.shape == (3, 2 * 2 + 1, 3 * 2 + 2), "a pixel between the images, none around them"
    assert picture[0, ::3, ::3].tolist() == [[0, 1, 2], [3, 4, 255]]
    assert picture[0, 2].tolist() == [255] * 8 and picture[0, :2, 2].tolist() == [255] * 2
