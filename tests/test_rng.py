"""Randomness as a function: the address decides, nothing else does."""

from __future__ import annotations

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
