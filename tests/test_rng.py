"""Randomness as a function: the address decides, nothing else does."""

from __future__ import annotations

import math
from hashlib import blake2b

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from varlab.rng import Rng

seeds = st.integers(0, 2**63 - 1)


@given(seeds, st.integers(0, 10**9), st.integers(2, 9), st.integers(0, 8))
def test_a_row_does_not_depend_on_its_batch(seed: int, first: int, batch: int, row: int) -> None:
    ids = torch.arange(first, first + batch)
    row %= batch
    together, alone = Rng(seed).stream("sample", ids, 3), Rng(seed).stream("sample", ids[row : row + 1], 3)
    for draw in (
        lambda s: s.uniform(4, 2),
        lambda s: s.normal(5),
        lambda s: s.permutation(7),
        lambda s: s.integers(9, 3),
    ):
        assert torch.equal(draw(together)[row : row + 1], draw(alone))


@given(seeds)
def test_every_part_of_the_address_counts(seed: int) -> None:
    base = Rng(seed).stream("sample", 4, 2).uniform(8)
    others = [Rng(seed ^ 1).stream("sample", 4, 2), Rng(seed).stream("order", 4, 2), Rng(seed).stream("sample", 5, 2)]
    for other in [*others, Rng(seed).stream("sample", 4, 3)]:
        assert not torch.equal(base, other.uniform(8))
    assert torch.equal(base, Rng(seed).stream("sample", 4).at(2).uniform(8))


def test_keys_are_signed_numbers_of_64_bits() -> None:
    keys = [Rng(seed).key("sample") for seed in range(64)]
    assert len(set(keys)) == 64 and min(keys) >= -(2**63) and max(keys) < 2**63
    assert 16 < sum(key < 0 for key in keys) < 48


def test_draws_look_random() -> None:
    """Moments, neighbouring ids and neighbouring steps: no correlation to be seen in 200,000 draws."""
    stream = Rng(0).stream("sample", torch.arange(2000))
    u, z = stream.uniform(100), stream.normal(100)
    assert float(u.min()) >= 0 and float(u.max()) < 1
    assert abs(float(u.mean()) - 0.5) < 0.003 and abs(float(u.var()) - 1 / 12) < 0.002
    assert abs(float(z.mean())) < 0.01 and abs(float(z.var()) - 1) < 0.02
    for other in (u.roll(1, 0), u.roll(1, 1), stream.at(1).uniform(100)):
        assert abs(float(torch.corrcoef(torch.stack([u.flatten(), other.flatten()]))[0, 1])) < 0.01


def test_scope_leaves_the_global_generator_alone() -> None:
    before = torch.random.get_rng_state()
    with Rng(3).scope("init"):
        first = torch.rand(3)
    assert torch.equal(torch.random.get_rng_state(), before)
    with Rng(3).scope("init"):
        assert torch.equal(torch.rand(3), first)


def test_permutations_are_uniform() -> None:
    paths = Rng(1).stream("order", torch.arange(24000)).permutation(4)
    assert torch.equal(paths.sort(1).values, torch.arange(4).expand(24000, 4))
    codes, counts = (paths * torch.tensor([64, 16, 4, 1])).sum(1).unique(return_counts=True)
    assert len(codes) == 24 and int((counts - 1000).abs().max()) < 160


# -- the numbers themselves, from Python's own integers ----------------------------------------------------------------

GOLDEN = 0x9E3779B97F4A7C15


def mix(z: int) -> int:
    """The finalizer of SplitMix64, as its authors print it, on unsigned 64-bit numbers."""
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ z >> 27) * 0x94D049BB133111EB % 2**64
    return z ^ z >> 31


def key(seed: int, name: str) -> int:
    return int.from_bytes(blake2b(f"{seed}/{name}".encode(), digest_size=8).digest(), "little")


def words(seed: int, name: str, row: int, step: int, n: int) -> list[int]:
    """The first n words of 64 bits at an address."""
    start = mix((mix((row + key(seed, name)) % 2**64) + step * GOLDEN) % 2**64)
    return [mix((start + counter * GOLDEN) % 2**64) for counter in range(1, n + 1)]


def test_the_reference_is_splitmix64() -> None:
    """The first numbers of the published generator after the seed 1234567."""
    first = [mix((1234567 + i * GOLDEN) % 2**64) for i in (1, 2, 3)]
    assert first == [6457827717110365317, 3203168211198807973, 9817491932198370423]


@given(seeds, st.integers(0, 2**40), st.sampled_from([0, 1, 5, 2**32 + 3]))
def test_draws_are_made_of_these_words(seed: int, row: int, step: int) -> None:
    stream = Rng(seed).stream("sample", torch.tensor([row, row + 1]), step)
    for b in (0, 1):
        w = words(seed, "sample", row + b, step, 12)
        assert stream.uniform(2, 3)[b].flatten().tolist() == [word % 2**64 // 2**40 / 2**24 for word in w[:6]]
        assert stream.integers(1000, 3, 2)[b].flatten().tolist() == [word // 2**11 % 1000 for word in w[:6]]
        assert stream.permutation(7)[b].tolist() == sorted(range(7), key=lambda i: w[i] // 2)
        lanes = [(word >> 16 * i & 0xFFFF) for word in w for i in range(4)]
        signed = [lane - 2**16 * (lane >= 2**15) for lane in lanes]
        kept = [(value >= 0.25 * 2**16 - 2**15) / 0.75 for value in signed[:10]]
        assert stream.keep(0.25, 5, 2)[b].flatten().tolist() == pytest.approx(kept)
        u = [(word // 2**11 + 0.5) / 2**53 for word in w]
        normal = [math.sqrt(-2 * math.log(u[i])) * math.cos(2 * math.pi * u[i + 6]) for i in range(6)]
        assert stream.normal(3, 2)[b].flatten().tolist() == pytest.approx(normal, rel=1e-6, abs=1e-6)


@given(seeds)
def test_one_row_of_a_stream_and_the_seed_of_a_scope(seed: int) -> None:
    stream = Rng(seed).stream("order", torch.arange(4), 2)
    assert torch.equal(stream.only(2).uniform(3), stream.uniform(3)[2:3])
    assert Rng(seed).stream("order").ids_B.tolist() == [0]
    with Rng(seed).scope("init"):
        assert torch.initial_seed() == key(seed, "init") % 2**63


@pytest.mark.parametrize("rate", [0.0, 0.1, 1 / 3, 0.9])
def test_dropout_keeps_the_mean(rate: float) -> None:
    """E[keep] = 1, with the share of zeros that was asked for."""
    kept = Rng(0).stream("dropout", torch.arange(400)).keep(rate, 1001)
    assert kept.shape == (400, 1001)
    assert float((kept == 0).double().mean()) == pytest.approx(rate, abs=4e-3)
    assert float(kept.double().mean()) == pytest.approx(1.0, abs=5e-3 / (1 - rate))
