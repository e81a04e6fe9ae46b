"""The exact stream: a pure function of (seed, position), whoever fetches it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from varlab.data.image.augment import Augment
from varlab.data.read.epoch_order import EpochOrder
from varlab.data.read.loader import EvalBatches, TrainBatches
from varlab.data.shard_module import ShardDataModule
from varlab.rng import Rng
from varlab.types import Batch, VarlabError


def order(seed: int, epoch: int, n: int) -> Tensor:
    return EpochOrder(seed=seed, shard_N=np.zeros(n, dtype=int)).epoch(epoch)


Make = Callable[..., ShardDataModule]
N = 37  # images in the training split of made_set


def joined(parts: list[Batch]) -> tuple[Tensor, ...]:
    fields = ("img_u8_B3HW", "label_B", "position_B", "valid_B")
    return tuple(torch.cat([getattr(p, f) for p in parts]) for f in fields)


def same(a: tuple[Tensor, ...], b: tuple[Tensor, ...]) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


@given(st.integers(0, 1 << 40), st.integers(0, 1000), st.integers(1, 500))
def test_order_is_a_permutation(seed: int, epoch: int, n: int) -> None:
    assert torch.equal(order(seed, epoch, n).sort().values, torch.arange(n))
    assert torch.equal(order(seed, epoch, n), order(seed, epoch, n))


def test_order_differs_by_epoch_and_seed() -> None:
    orders = [order(seed, epoch, 200) for seed in range(3) for epoch in range(3)]
    assert len({tuple(o.tolist()) for o in orders}) == 9


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_global_batches_are_the_same_on_any_ranks_and_workers(
    made_set: Path, make_module: Make, world: int, workers: int
) -> None:
    reference = list(make_module(made_set).train_loader(0, 48, 0, 1))
    data = make_module(made_set, workers=workers)
    ranks = [list(data.train_loader(0, 48, rank, world)) for rank in range(world)]
    assert [len(r) for r in ranks] == [6] * world
    for i, batch in enumerate(reference):
        assert same(joined([r[i] for r in ranks]), joined([batch]))
        assert batch.position_B.tolist() == list(range(8 * i, 8 * i + 8))


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 13), st.integers(0, 12), st.integers(0, 12))
def test_resuming_anywhere_goes_on_identically(
    made_set: Path, make_module: Make, batch: int, done: int, left: int
) -> None:
    whole = list(make_module(made_set, batch=batch).train_loader(0, (done + left) * batch, 0, 1))
    resumed = list(make_module(made_set, batch=batch).train_loader(done * batch, (done + left) * batch, 0, 1))
    assert len(resumed) == left
    assert all(same(joined([a]), joined([b])) for a, b in zip(whole[done:], resumed, strict=True))


def test_every_epoch_sees_every_sample_once(made_set: Path, make_module: Make) -> None:
    data = make_module(made_set, augment=Augment(flip=False, crop=1.0, noise=0.0))
    images, labels, *_ = joined(list(data.train_loader(0, 8 * N, 0, 1)))  # batches of 8 span epochs of 37
    numbered = {image.numpy().tobytes(): i for i, image in enumerate(data.images("train"))}
    seen = torch.tensor([numbered[image.numpy().tobytes()] for image in images])
    assert torch.equal(labels, data.labels("train")[seen])
    for epoch in range(8):
        assert torch.equal(seen[epoch * N : (epoch + 1) * N], order(3, epoch, N))


def test_budget_is_whole_batches() -> None:
    batches = TrainBatches(start=16, stop=41, batch=8, rank=1, world=2)
    assert len(batches) == len(list(batches)) == 4
    assert [list(b) for b in batches][-1] == [44, 45, 46, 47]


def test_batches_that_cannot_be_shared_are_refused(made_set: Path, make_module: Make) -> None:
    with pytest.raises(VarlabError, match="8 cannot be shared by 3 ranks"):
        make_module(made_set).train_loader(0, 8, 0, 3)
    with pytest.raises(VarlabError, match="8 cannot be shared by 3 ranks"):
        make_module(made_set).eval_loader("val", 0, 3)
    with pytest.raises(VarlabError, match="Position 12 is inside a batch of 8"):
        make_module(made_set).train_loader(12, 24, 0, 1)


@given(st.integers(1, 200), st.integers(1, 9), st.integers(1, 6))
def test_evaluation_sees_each_sample_exactly_once(n: int, share: int, world: int) -> None:
    ranks = [EvalBatches(n=n, batch=share * world, rank=r, world=world) for r in range(world)]
    batches = [[list(b) for b in r] for r in ranks]
    assert [len(r) for r in ranks] == [len(b) for b in batches]
    assert len({tuple(map(len, b)) for b in batches}) == 1
    seen = sorted(p for b in batches for positions in b for p in positions)
    assert seen == list(range(len(seen)))
    assert n <= len(seen) < n + world


@pytest.mark.parametrize(("world", "batch"), [(1, None), (2, 8), (4, 8), (4, 100), (32, 32)])
def test_padding_is_masked(made_set: Path, make_module: Make, world: int, batch: int | None) -> None:
    data = make_module(made_set)
    ranks = [list(data.eval_loader("val", rank, world, batch)) for rank in range(world)]
    images, labels, positions, valid = joined([b for step in zip(*ranks, strict=True) for b in step])
    assert int(valid.sum()) == 21
    assert torch.equal(positions[valid], torch.arange(21))
    assert torch.equal(images[valid], data.images("val"))
    assert torch.equal(labels[valid], data.labels("val"))
    assert positions.max() == 20


@given(st.permutations(range(12)), st.booleans(), st.sampled_from([1.0, 1.25, 2.0]))
def test_augmentation_belongs_to_the_position(places: list[int], flip: bool, crop: float) -> None:
    augment, rng = Augment(flip=flip, crop=crop, noise=0.0), Rng(5)
    img_u8_B3HW = Rng(0).stream("noise", torch.arange(12)).integers(256, 3, 6, 6).to(torch.uint8)
    together = augment(img_u8_B3HW.clone(), torch.arange(12), rng)
    p_B = torch.tensor(places[:5])
    assert torch.equal(augment(img_u8_B3HW[p_B], p_B, rng), together[p_B])
    assert together.shape == img_u8_B3HW.shape and together.dtype == torch.uint8


def test_augmentation_flips_half_and_crops_everywhere() -> None:
    ramp_HW = torch.arange(16, dtype=torch.uint8).mul(16).expand(16, 16)
    img_u8_B3HW = ramp_HW.expand(400, 3, 16, 16)
    flipped = Augment(flip=True, crop=1.0, noise=0.0)(img_u8_B3HW.clone(), torch.arange(400), Rng(0))
    is_flipped = (flipped == img_u8_B3HW.flip(3)).flatten(1).all(1)
    assert torch.equal(flipped[~is_flipped], img_u8_B3HW[~is_flipped])
    assert 160 < int(is_flipped.sum()) < 240
    cropped = Augment(flip=False, crop=1.25, noise=0.0)(img_u8_B3HW.clone(), torch.arange(400), Rng(0))
    corners = cropped[:, 0, 0, 0].unique()
    assert len(corners) == 5 and corners.min() == 0  # 20 pixels leave five places for 16
    with pytest.raises(VarlabError, match=r"augment\.crop is 0\.5"):
        Augment(flip=False, crop=0.5, noise=0.0)
