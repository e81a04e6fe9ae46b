"""The numbers of sampling, by hand: settings, guidance, noise, soft codes, frames."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from varlab.rng import Rng
from varlab.sample import Sampler, blend_images, kept_maps, pick
from varlab.sample.draws import AddressedDraws
from varlab.sample.guidance import guide
from varlab.sample.images import Growth
from varlab.sample.inputs import checked_condition, checked_labels
from varlab.sample.smooth_codes import all_codes, soft_codes, temperature
from varlab.types import VarlabError

PLAIN: dict[str, Any] = dict(cfg=0.0, ramp="constant", temperature=1.0, top_k=0, top_p=1.0)


@pytest.mark.parametrize(
    "ends",
    [
        {"top_p": 1.0},
        {"top_p": 1e-6},
        {"top_k": 0},
        {"top_k": 1},
        {"cfg": 0.0},
        {"cfg_steps": 0},
        {"temperature": 1e-3},
    ],
)
def test_the_ends_of_the_ranges_are_allowed(ends: dict[str, Any]) -> None:
    assert Sampler(**(PLAIN | ends)).settings() == {"cfg_steps": None, "smooth": False} | PLAIN | ends


@pytest.mark.parametrize(
    "beyond",
    [
        {"top_p": 1.01}, {"top_p": 0.0}, {"top_p": -0.1}, {"top_k": -1}, {"cfg": -0.01}, {"temperature": 0.0},
        {"temperature": -1.0}, {"cfg_steps": -1}, {"cfg_steps": 1.5}, {"cfg": "1"}, {"top_k": None}, {"top_p": "0.9"},
    ],
)  # fmt: skip
def test_what_is_beyond_them_is_refused(beyond: dict[str, Any]) -> None:
    with pytest.raises(VarlabError, match=f"^(Sampler )?{next(iter(beyond))}="):
        Sampler(**(PLAIN | beyond))


def test_a_sampler_of_ones_own_is_named() -> None:
    class Own(Sampler):
        pass

    assert Own(**PLAIN).settings()["_target_"].endswith("Own") and "_target_" not in Sampler(**PLAIN).settings()


@pytest.mark.parametrize(
    ("ramp", "cfg_steps", "steps", "strengths"),
    [
        ("linear", None, 5, [0.0, 0.5, 1.0, 1.5, 2.0]),
        ("linear", 3, 5, [0.0, 0.5, 1.0]),
        ("linear", 1, 5, []),
        ("linear", 0, 5, []),
        ("linear", None, 1, []),
        ("constant", None, 3, [2.0, 2.0, 2.0]),
        ("constant", 9, 2, [2.0, 2.0]),
        ("constant", 1, 2, [2.0]),
    ],
)
def test_the_strength_of_guidance_at_each_step(
    ramp: str, cfg_steps: int | None, steps: int, strengths: list[float]
) -> None:
    """VAR's ramp: cfg·k/(K - 1), up to the last step that is guided at all."""
    assert Sampler(**(PLAIN | dict(cfg=2.0, ramp=ramp, cfg_steps=cfg_steps))).strengths(steps) == strengths


def test_a_model_of_one_class_is_not_guided() -> None:
    guided, plain = Sampler(**(PLAIN | {"cfg": 0.5})), Sampler(**PLAIN)
    assert [guided.guides(n) for n in (1, 2)] == [False, True] and not plain.guides(2)
    assert Sampler().guides(1000) and not Sampler().smooth


def test_guidance_is_its_formula() -> None:
    """(1 + t)·conditional - t·unconditional; the conditional half comes first."""
    cond, uncond = torch.tensor([[1.0, -2.0]]), torch.tensor([[3.0, 5.0]])
    assert torch.equal(guide(torch.cat([cond, uncond]), 0.5), 1.5 * cond - 0.5 * uncond)


def test_draws_are_those_of_their_step() -> None:
    """Gumbel noise is -log(-log u) of the stream from step 2^32 on."""
    stream, logits = Rng(2).stream("sample", torch.tensor([4, 9])), torch.zeros(2, 3, 5)
    draws = AddressedDraws(stream)
    u = stream.at(7).uniform(3)
    assert torch.equal(draws.pick(logits, 7), pick(logits, u))
    u = stream.at(2**32 + 7).uniform(3, 5).double() + 2.0**-25
    assert torch.equal(draws.gumbel(logits, 7), (-(-u.log()).log()).float())
    assert draws.gumbel(torch.zeros(2, 3, 5).double(), 7).dtype == torch.float64
    many = AddressedDraws(Rng(0).stream("sample", torch.arange(2000))).gumbel(torch.zeros(2000, 10, 10), 1)
    assert float(many.mean()) == pytest.approx(0.57722, abs=0.01)
    assert float(many.var()) == pytest.approx(math.pi**2 / 6, rel=0.02)


def test_soft_codes_by_hand() -> None:
    """VAR's more_smooth: logits times 1 + progress, and τ from 0.27 to a twentieth of it."""
    assert temperature(0.0) == pytest.approx(0.27) and temperature(1.0) == pytest.approx(0.0135)
    assert temperature(0.5) == pytest.approx(0.27 * 0.525) and temperature(1.1) == 0.005
    logits, noise = torch.tensor([[[0.1, -0.2, 0.3]]]), torch.tensor([[[0.2, 0.1, -0.1]]])
    codes = torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, -1.0]])
    mixed = [(a * 1.5 + b) / (0.27 * 0.525) for a, b in zip([0.1, -0.2, 0.3], [0.2, 0.1, -0.1], strict=True)]
    shares = torch.tensor([math.exp(m) for m in mixed])
    torch.testing.assert_close(soft_codes(logits, noise, 0.5, codes), (shares / shares.sum() @ codes)[None, None])
    table = torch.arange(8.0).view(4, 2)
    tokenizer = SimpleNamespace(vocab_size=4, embed=lambda idx: table[idx])
    assert torch.equal(all_codes(tokenizer, torch.zeros(1)), table)


@pytest.mark.parametrize(
    ("steps", "frames", "shown"),
    [(10, 3, [2, 6, 9]), (10, 10, list(range(10))), (4, 1, [3]), (2, 5, [0, 1]), (16, 4, [3, 7, 11, 15]), (0, 3, [])],
)
def test_which_steps_are_shown(steps: int, frames: int, shown: list[int]) -> None:
    """Evenly spaced, the last one among them, none twice."""
    tokenizer = SimpleNamespace(decode=lambda canvas: canvas)
    order = SimpleNamespace(steps=(1,) * steps, canvas=lambda state, tokenizer: torch.full((2, 3, 4, 4), float(state)))
    growth = Growth(order=order, tokenizer=tokenizer, frames=frames)
    assert growth.steps == shown
    for k in range(steps):
        growth(k, k)
    if shown:
        assert growth.images().shape == (2, len(shown), 3, 4, 4)
        assert growth.images()[0, :, 0, 0, 0].tolist() == shown


def test_scales_of_three_tokens_are_kept() -> None:
    """And of others what the mask leaves, resized: a cell is kept where more than half of it is."""
    scales = [(1, 1), (1, 2), (1, 3), (2, 2)]
    kept = kept_maps(torch.ones(1, 8, 8), scales, force_small=True)
    assert [bool(k.all()) for k in kept] == [True, True, True, False]
    mask = torch.zeros(1, 4, 4)
    mask[:, :, 2:] = 1
    (half,) = kept_maps(mask, [(2, 2)], force_small=False)
    assert half.tolist() == [[True, False, True, False]] and half.dtype == torch.bool


def test_images_are_blended_by_the_share_of_the_mask() -> None:
    img, painted = torch.full((1, 3, 1, 3), 2.0), torch.full((1, 3, 1, 3), 10.0)
    blended = blend_images(img, painted, torch.tensor([[[0.0, 0.25, 1.0]]]))
    assert blended[0, 0, 0].tolist() == [2.0, 4.0, 10.0]


def test_labels_of_a_model_of_one_class_are_that_class() -> None:
    cpu = torch.device("cpu")
    assert checked_labels(None, classes=["all"], batch=3, device=cpu).tolist() == [0, 0, 0]
    assert checked_labels(None, classes=["a", "b"], batch=2, device=cpu).tolist() == [2, 2]
    assert checked_labels(torch.tensor([[2], [0]]), classes=["a", "b"], batch=2, device=cpu).tolist() == [2, 0]
    for wrong in ([-1], torch.tensor([-1]), torch.tensor([3]), [3]):
        with pytest.raises(VarlabError, match="outside the 2 classes"):
            checked_labels(wrong, classes=["a", "b"], batch=1, device=cpu)


def test_conditions_must_have_their_tokens_for_each_sample() -> None:
    cpu, cond = torch.device("cpu"), torch.zeros(2, 4, dtype=torch.int64)
    assert checked_condition(cond, num_tokens=4, batch=2, device=cpu) is not None
    assert checked_condition(None, num_tokens=0, batch=2, device=cpu) is None
    for given, tokens, batch, shape in ((cond, 3, 2, r"\(2, 4\)"), (cond, 4, 3, r"\(2, 4\)"), (None, 4, 2, "not None")):
        with pytest.raises(VarlabError, match=shape):
            checked_condition(given, num_tokens=tokens, batch=batch, device=cpu)
