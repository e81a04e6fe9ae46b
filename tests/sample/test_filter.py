"""Filters and the draw, against their definitions."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import profile

from tests.sample.reference import reference_filter
from varlab.rng import Rng
from varlab.sample import Sampler, filter_logits, pick
from varlab.sample.filter import _largest
from varlab.types import VarlabError

numbers = st.floats(-8, 8, allow_nan=False, width=32)
rows = st.lists(numbers, min_size=2, max_size=12)


@given(rows, st.integers(1, 12))
def test_top_k_keeps_the_k_largest_and_ties(row: list[float], k: int) -> None:
    kept = filter_logits(torch.tensor([[row]]), temperature=1.0, top_k=k, top_p=1.0)[0, 0].isfinite()
    least = sorted(row, reverse=True)[min(k, len(row)) - 1]
    assert kept.tolist() == [value >= least for value in torch.tensor(row).tolist()]


@given(rows, st.floats(0.05, 0.95))
def test_top_p_removes_the_ascending_tail(row: list[float], p: float) -> None:
    logits = torch.tensor(row)
    kept = filter_logits(logits[None, None], temperature=1.0, top_k=0, top_p=p)[0, 0].isfinite()
    order = logits.argsort(stable=True)
    cumulative = logits[order].softmax(-1).cumsum(-1)
    expected = cumulative > 1 - p
    expected[-1] = True
    assert torch.equal(kept[order], expected)
    assert kept.any()


@pytest.mark.parametrize(("levels", "V"), [(0, 500), (0, 1003), (400, 500), (40, 500), (1, 100)])
@pytest.mark.parametrize(("top_k", "top_p"), [(100, 0.9), (50, 0.5), (0, 0.96), (490, 0.99), (60, 1.0)])
def test_filters_equal_a_full_sort_ties_included(levels: int, V: int, top_k: int, top_p: float) -> None:
    """levels: how many values the logits have, so that many are tied (0: all differ)."""
    logits = torch.randn(4, 20, V, generator=torch.Generator().manual_seed(levels)) * 3
    if levels:
        logits = (logits * levels / 9).round() * 9 / levels
    settings = {"temperature": 1.1, "top_k": top_k, "top_p": top_p}
    assert torch.equal(filter_logits(logits, **settings), reference_filter(logits, **settings))


@given(rows, st.floats(0, 1, exclude_max=True, width=32))
def test_pick_is_the_inverse_cdf_and_never_draws_the_impossible(row: list[float], u: float) -> None:
    logits = torch.tensor(row)
    logits[0] = -math.inf
    idx = int(pick(logits[None, None], torch.tensor([[u]]))[0, 0])
    cdf = logits.double().softmax(-1).cumsum(-1)
    assert idx > 0
    assert cdf[idx] > u * cdf[-1] >= (cdf[idx - 1] if idx else 0.0)


@settings(deadline=None, max_examples=5)
@given(st.integers(0, 1000))
def test_pick_draws_with_the_models_probabilities(seed: int) -> None:
    logits = torch.tensor([0.0, 1.0, -1.0, 2.0])
    n = 20000
    u = Rng(seed).stream("sample", torch.arange(n)).uniform(1)
    counts = torch.bincount(pick(logits.expand(n, 1, 4), u)[:, 0], minlength=4) / n
    assert (counts - logits.softmax(-1)).abs().max() < 5 * 0.5 / math.sqrt(n)


def test_temperature_divides() -> None:
    logits = torch.randn(1, 1, 5, generator=torch.Generator().manual_seed(0))
    assert torch.equal(filter_logits(logits, temperature=2.0, top_k=0, top_p=1.0), logits / 2)


def test_a_top_p_of_nothing_or_of_all_filters_nothing() -> None:
    logits = torch.randn(1, 2, 9, generator=torch.Generator().manual_seed(0))
    for top_p in (0.0, 1.0):
        assert torch.equal(filter_logits(logits, temperature=1.0, top_k=0, top_p=top_p), logits)


class OnAccelerator:
    """Logits that say they lie on an accelerator."""

    device = SimpleNamespace(type="cuda")

    def __init__(self, logits: torch.Tensor):
        self.shape, self.topk = logits.shape, logits.topk


def test_the_largest_are_found_without_their_places_on_a_processor() -> None:
    """There, numpy orders the numbers; elsewhere, torch does, to the same result."""
    logits = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(0))
    expected = logits.sort(-1).values
    for size in (1, 7, 40):
        assert torch.equal(_largest(logits, size), expected[..., 40 - size :])
        assert torch.equal(_largest(OnAccelerator(logits), size), expected[..., 40 - size :])
    with profile() as trace:
        _largest(logits, 7)
    assert not any("topk" in event.key or "sort" in event.key for event in trace.key_averages())


@pytest.mark.parametrize("bad", [{"temperature": 0}, {"top_p": 0}, {"top_k": -1}, {"cfg": -1}, {"ramp": "cubic"}])
def test_bad_settings_are_a_sentence(bad: dict) -> None:
    with pytest.raises(VarlabError, match=f"^(Sampler )?{next(iter(bad))}="):
        Sampler(**(dict(cfg=0.0, ramp="linear", temperature=1.0, top_k=0, top_p=1.0) | bad))


@pytest.mark.parametrize("vocabulary", [3, 1 << 16, 1 << 18])
def test_pick_draws_in_pieces_as_at_once(vocabulary: int) -> None:
    draw = torch.Generator().manual_seed(0)
    logits, u_Bl = torch.randn(2, 3, vocabulary, generator=draw), torch.rand(2, 3, generator=draw)
    cdf = logits.double().softmax(-1).cumsum(-1)
    at_once = torch.searchsorted(cdf, u_Bl.double()[..., None] * cdf[..., -1:], right=True)[..., 0]
    assert torch.equal(pick(logits, u_Bl), at_once)


@pytest.mark.parametrize("settings", [{"top_k": 5, "top_p": 1.0}, {"top_k": 0, "top_p": 0.8}])
def test_logits_of_a_training_are_filtered_too(settings: dict) -> None:
    """In bfloat16, and with a gradient."""
    logits = torch.randn(2, 3, 40, generator=torch.Generator().manual_seed(0)).bfloat16()
    found = filter_logits(logits.requires_grad_(), temperature=1.0, **settings)
    assert found.dtype == torch.bfloat16 and found.requires_grad
    if settings["top_k"]:
        expected = filter_logits(logits.detach().float(), temperature=1.0, **settings)
        assert torch.equal(found.isfinite(), expected.isfinite())
    assert (found.isfinite().sum(-1) > 0).all() and not found.isfinite().all()
