"""Elastic determinism, shown: one list of (epoch, key, crop) on any ranks and workers, and across a change of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from varlab.data.image.augment import Augment
from varlab.data.image.crop import RandomResizedCrop
from varlab.data.pack.packer import pack
from varlab.data.read.epoch_order import EpochOrder, quality
from varlab.data.shard_module import ShardDataModule
from varlab.types import Batch, VarlabError

N = 350  # images of an epoch: the first 1,000 positions span three
FIRST = 1_000
GLOBAL = 40

Item = tuple[int, str, str]
"""epoch, key, and the hash of the cropped, flipped and noisy pixels."""


@pytest.fixture(scope="module")
def many(make_images: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("many")
    pack(make_images(train=N, val=3), out, shard_size=40)
    return out


def module(path: Path, workers: int, **changes: Any) -> ShardDataModule:
    crop = RandomResizedCrop(scale=(0.3, 1.0), ratio=(0.75, 4 / 3))
    augment = Augment(flip=True, crop=1.0, noise=2.0)
    settings: dict[str, Any] = {"batch": GLOBAL, "eval_batch": 8, "seed": 11, "cache_bytes": 0, **changes}
    return ShardDataModule(path=path, workers=workers, crop=crop, augment=augment, **settings)


def items(data: ShardDataModule, batch: Batch) -> list[Item]:
    stream, reader = data.train_samples(), data.reader("train")
    keys = [reader.key(i) for i in stream.order.locate(batch.position_B).tolist()]
    pixels = [hashlib.sha1(image.contiguous().numpy().tobytes()).hexdigest() for image in batch.img_u8_B3HW]
    return list(zip((batch.position_B // N).tolist(), keys, pixels, strict=True))


def listed(path: Path, ranks: int, workers: int, start: int, stop: int, **changes: Any) -> list[Item]:
    """What a run sees, in the order of positions: each rank's loader with its own workers."""
    modules = [module(path, workers, **changes) for _ in range(ranks)]
    loaders = [data.train_loader(start, stop, rank, ranks) for rank, data in enumerate(modules)]
    seen: list[Item] = []
    for shares in zip(*loaders, strict=True):
        for data, share in zip(modules, shares, strict=True):
            seen += items(data, share)
    return seen


@pytest.fixture(scope="module")
def reference(many: Path) -> list[Item]:
    return listed(many, 1, 0, 0, FIRST)


@pytest.mark.filterwarnings("ignore:This DataLoader will create")
@pytest.mark.parametrize(("ranks", "workers"), [(1, 3), (2, 1), (4, 2)])
def test_the_first_1000_are_the_same_on_any_ranks_and_workers(
    many: Path, reference: list[Item], ranks: int, workers: int
) -> None:
    assert len(reference) == FIRST and {epoch for epoch, _, _ in reference} == {0, 1, 2}
    assert listed(many, ranks, workers, 0, FIRST) == reference


def test_a_stop_that_changes_from_2_to_4_ranks_changes_nothing(many: Path, reference: list[Item]) -> None:
    stop = 11 * GLOBAL  # in the middle of the second epoch
    assert listed(many, 2, 1, 0, stop) + listed(many, 4, 2, stop, FIRST) == reference


def test_epochs_differ_in_order_and_crop(reference: list[Item]) -> None:
    first, second = reference[:N], reference[N : 2 * N]
    assert {key for _, key, _ in first} == {key for _, key, _ in second}
    assert [key for _, key, _ in first] != [key for _, key, _ in second]
    pixels = [{key: pixel for _, key, pixel in epoch} for epoch in (first, second)]
    assert sum(pixels[0][key] == pixels[1][key] for key in pixels[0]) < 5


def test_few_open_shards_are_elastic_too(many: Path) -> None:
    seen = listed(many, 1, 0, 0, 2 * N, open_shards=2)
    assert listed(many, 2, 1, 0, 2 * N, open_shards=2) == seen
    assert {key for _, key, _ in seen[:N]} == {key for _, key, _ in listed(many, 1, 0, 0, N)}


@given(st.integers(1, 40), st.integers(1, 30), st.integers(1, 12), st.integers(0, 99))
def test_any_locality_visits_every_sample_once(shards: int, largest: int, open_shards: int, seed: int) -> None:
    sizes = np.random.default_rng(seed).integers(1, largest + 1, shards)
    shard_N = np.repeat(np.arange(shards), sizes)
    epoch_order = EpochOrder(seed=seed, shard_N=shard_N, open_shards=open_shards)
    order = epoch_order.epoch(3).numpy()
    assert np.array_equal(np.sort(order), np.arange(len(shard_N)))
    for place in range(0, len(shard_N), 7):
        wanted = epoch_order.shards_near(3 * len(order) + place)
        if wanted is not None:
            assert shard_N[order[place]] in wanted[:open_shards] and len(wanted) <= 2 * open_shards
    assert len(set(shard_N[order[: sizes.min()]].tolist())) <= max(open_shards, 1)


def test_locality_is_measured() -> None:
    shard_N, label_N = np.repeat(np.arange(100), 50), np.repeat(np.arange(10), 500)  # each shard holds one class
    figures = {
        k: quality(EpochOrder(seed=0, shard_N=shard_N, open_shards=k), shard_N=shard_N, label_N=label_N, batch=64)
        for k in (None, 32, 4, 1)
    }
    assert figures[None]["shards"] == pytest.approx(1, abs=0.02) and figures[None]["labels"] == pytest.approx(
        1, abs=0.2
    )
    assert figures[1]["shards"] < 0.1 < figures[4]["shards"] < figures[32]["shards"] < 1
    assert figures[1]["labels"] > figures[4]["labels"] > figures[32]["labels"] > 1
    assert all(abs(f["memory"]) < 0.3 for f in figures.values())
    with pytest.raises(VarlabError, match=r"data\.open_shards is 0"):
        EpochOrder(seed=0, shard_N=shard_N, open_shards=0)


# -- small sets --------------------------------------------------------------------------------------------------------

Make = Callable[..., ShardDataModule]


@pytest.mark.parametrize(("train", "shard_size", "ranks"), [(30, 10, 2), (9, 99, 4), (3, 99, 4), (1, 99, 2)])
def test_few_shards_and_few_samples_on_many_ranks(
    make_images: Any, make_module: Make, tmp_path: Path, train: int, shard_size: int, ranks: int
) -> None:
    """3 shards on 2 ranks, 1 shard on 4 ranks, fewer samples than a global batch: a batch may span epochs."""
    pack(make_images(train=train, val=2), tmp_path, shard_size=shard_size)
    loaders = [list(make_module(tmp_path, workers=1).train_loader(0, 40, rank, ranks)) for rank in range(ranks)]
    assert [len(batches) for batches in loaders] == [5] * ranks
    seen = torch.cat([share.position_B for step in zip(*loaders, strict=True) for share in step])
    assert torch.equal(seen, torch.arange(40))
    val = [list(make_module(tmp_path).eval_loader("val", rank, ranks)) for rank in range(ranks)]
    assert len({len(batches) for batches in val}) == 1
    assert sum(int(share.valid_B.sum()) for batches in val for share in batches) == 2


def test_more_ranks_than_a_batch_is_a_sentence(make_images: Any, make_module: Make, tmp_path: Path) -> None:
    pack(make_images(train=9, val=2), tmp_path, shard_size=9)
    with pytest.raises(VarlabError, match="2 cannot be shared by 4 ranks: make it a multiple of that"):
        make_module(tmp_path, batch=2).train_loader(0, 8, 0, 4)
