"""Scores of tokenizers against their formulas, and names of protocols."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from skimage.metrics import structural_similarity
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from tests.bounds import SAME
from varlab.metrics.distribution.inception_score import SeededInceptionScore
from varlab.metrics.protocol import protocol, protocol_name
from varlab.metrics.tokenizer_scores import CodebookHealth, ImageMean, TokenizerScores, _ssim, codebook_health
from varlab.rng import Rng
from varlab.types import to_float

pytestmark = [pytest.mark.numeric, pytest.mark.usefixtures("in_float64")]


class Pixels:
    """An extractor whose features are two pixels."""

    name, hash, resize, num_features, num_classes = "pixels", "3f2a" * 16, "none", 2, None
    held_out = None

    def __call__(self, img_u8_B3HW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        f_BF = img_u8_B3HW[:, 0, 0, :2].float()
        return f_BF, f_BF

    def to(self, device: torch.device | str) -> Pixels:
        return self


def images(name: str, batch: int = 12) -> torch.Tensor:
    return Rng(0).stream(name, torch.arange(batch)).integers(256, 3, 8, 8).to(torch.uint8)


def squared(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return (x - y).square().mean((1, 2, 3))


def test_a_mean_is_the_same_however_ranks_share_the_images() -> None:
    x_N, means = Rng(0).stream("x", torch.arange(500)).normal(1)[:, 0].float() + 2, []
    for world in (1, 2, 3, 600):
        ranks = [ImageMean() for _ in range(world)]
        for rank, mean in enumerate(ranks):
            for part_B in x_N[rank::world].split(7):
                mean.update(part_B)
        for other in ranks[1:]:
            ranks[0].merge_state(other)
        means.append(float(ranks[0].compute()))
    assert means == pytest.approx([float(x_N.double().mean())] * 4, rel=1e-14)


def test_reconstruction_scores_are_their_formulas() -> None:
    img, rec = images("a"), images("b")
    sheet = TokenizerScores(scales=1, vocab_size=4, extractor=Pixels(), perceptual=squared)
    for rows in torch.arange(12).split(5):
        sheet.update(img[rows], rec[rows], torch.tensor([[1, 0, 0, 1]]))
    values = sheet.compute()
    error_B = (img.double() - rec.double()).square().mean((1, 2, 3))
    assert values["psnr"] == pytest.approx(float((10 * (255**2 / error_B).log10()).mean()), rel=SAME)
    assert values["psnr"] != pytest.approx(float(10 * (255**2 / error_B.mean()).log10()), rel=1e-6)
    assert values["l1"] == pytest.approx(float((to_float(img) - to_float(rec)).abs().mean()), rel=SAME)
    assert values["perceptual"] == pytest.approx(float(squared(to_float(img), to_float(rec)).mean()), rel=SAME)
    assert values["rfid"] > 1 and values["usage/0"] == 0.5 and values["perplexity/0"] == pytest.approx(2.0)


@pytest.mark.parametrize("knows_content", [True, False])
def test_ris_is_the_inception_score_of_reconstructions(knows_content: bool) -> None:
    extractor = Pixels()
    extractor.knows_content = knows_content
    score = SeededInceptionScore(splits=2, seed=0)
    sheet = TokenizerScores(scales=1, vocab_size=4, extractor=extractor, perceptual=None, ris=score)
    for rows in torch.arange(12).split(5):
        sheet.update(images("a")[rows], images("b")[rows], torch.tensor([[1, 0, 0, 1]]))
    values = sheet.compute()
    assert ("ris" in values) == knows_content
    if knows_content:
        alone = SeededInceptionScore(splits=2, seed=0)
        alone.update(extractor(images("b"))[1])
        assert values["ris"] == pytest.approx(float(alone.compute()[0]))


def test_a_perfect_tokenizer() -> None:
    sheet = TokenizerScores(scales=1, vocab_size=2, extractor=Pixels(), perceptual=squared)
    sheet.update(images("a"), images("a"), torch.ones(1, 2, dtype=torch.int64))
    values = sheet.compute()
    assert values["psnr"] == math.inf and values["l1"] == values["perceptual"] == 0 and abs(values["rfid"]) < 1e-6


def test_only_what_was_asked_for() -> None:
    sheet = TokenizerScores(scales=2, vocab_size=2, extractor=None, perceptual=None)
    sheet.update(images("a"), images("b"), torch.ones(2, 2, dtype=torch.int64))
    assert set(sheet.compute()) == {"psnr", "l1", "usage/0", "usage/1", "perplexity/0", "perplexity/1"}


def test_reconstruction_scores_do_not_depend_on_ranks() -> None:
    def sheet(rows: slice) -> TokenizerScores:
        part = TokenizerScores(scales=1, vocab_size=4, extractor=Pixels(), perceptual=squared)
        part.update(images("a")[rows], images("b")[rows], torch.tensor([[rows.start, 1, 0, 2]]))
        return part

    one, other = sheet(slice(0, 8)), sheet(slice(8, 12))
    for metric, more in zip(one.children(), other.children(), strict=True):
        metric.merge_state(more)
    whole = TokenizerScores(scales=1, vocab_size=4, extractor=Pixels(), perceptual=squared)
    whole.update(images("a"), images("b"), torch.tensor([[8, 2, 0, 4]]))
    assert one.compute() == pytest.approx(whole.compute(), rel=SAME)


@given(st.lists(st.integers(0, 50), min_size=2, max_size=20))
def test_codebook_health_is_its_formula(counts: list[int]) -> None:
    total = max(sum(counts), 1)
    entropy = -sum(c / total * math.log(c / total) for c in counts if c)
    values = codebook_health(torch.tensor([counts]))
    assert values["usage/0"] == pytest.approx(sum(c > 0 for c in counts) / len(counts))
    assert values["perplexity/0"] == pytest.approx(math.exp(entropy), rel=1e-9)


def test_codebook_health_per_scale_sums_batches() -> None:
    metric = CodebookHealth(scales=2, vocab_size=4)
    metric.update(torch.tensor([[4, 0, 0, 0], [1, 1, 0, 0]]))
    metric.update(torch.tensor([[4, 0, 0, 0], [0, 0, 1, 1]]))
    assert metric.compute() == {"usage/0": 0.25, "usage/1": 1.0, "perplexity/0": 1.0, "perplexity/1": pytest.approx(4)}


REFERENCE = {"name": "digits/train", "hash": "77", "n": 1437}
SAMPLER = {"cfg": 1.5, "top_k": 900, "top_p": 0.96, "temperature": None, "ramp": True}


def test_a_protocols_name_is_short_stable_and_its_own() -> None:
    one = protocol(extractor=Pixels(), reference=REFERENCE, n=1000, sampler=SAMPLER, seed=0)
    assert set(one) == {"extractor", "extractor_hash", "reference", "n", "sampler", "seed", "resize", "rounding"}
    assert protocol_name(one) == "pixels-3f2a_n1000_cfg1.5_k900_p0.96_seed0_57e968"
    plain = one | {"sampler": {"cfg": 0.0, "top_k": 0, "top_p": 1.0, "temperature": 0.5}}
    assert protocol_name(plain).startswith("pixels-3f2a_n1000_cfg0_t0.5_seed0_")
    reordered = {key: one[key] for key in reversed(one)}
    assert protocol_name(reordered) == protocol_name(one)
    others = [
        one | {"reference": REFERENCE | {"hash": "78"}},
        one | {"sampler": SAMPLER | {"ramp": False}},
        one | {"extractor_hash": one["extractor_hash"] + "0"},
        one | {"seed": 1},
        one | {"sampler": None},
    ]
    names = [protocol_name(other) for other in [one, *others]]
    assert len(set(names)) == len(names) and all(re.fullmatch(r"[\w.-]{1,100}", name) for name in names)


def test_structural_similarity_is_that_of_another_library() -> None:
    """Mean of the images, whose edges are mirrored: scikit-image with the constants of Wang et al. 2004."""
    img, other = (Rng(0).stream(n, torch.arange(5)).integers(256, 3, 24, 20).to(torch.uint8) for n in "ab")
    rec = (img.float() * 0.7 + other.float() * 0.3).to(torch.uint8)
    sheet = TokenizerScores(scales=1, vocab_size=2, extractor=None, perceptual=None)
    for rows in torch.arange(5).split(3):
        sheet.update(img[rows], rec[rows], torch.ones(1, 2, dtype=torch.int64))
    settings = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=255, channel_axis=0)
    padded = [[np.pad(x.double().numpy(), ((0, 0), (5, 5), (5, 5)), mode="reflect") for x in xs] for xs in (img, rec)]
    theirs = [structural_similarity(a, b, **settings) for a, b in zip(*padded, strict=True)]
    assert sheet.compute()["ssim"] == pytest.approx(sum(theirs) / 5, abs=1e-6)


def test_structural_similarity_of_many_pixels_is_that_of_each_image() -> None:
    """In pieces: a batch of 256 images of 128 pixels at once would take 20 GB."""
    img, rec = (Rng(0).stream(n, torch.arange(20)).integers(256, 3, 128, 128).to(torch.uint8) for n in "ab")
    with Most() as most:
        of_batch_B = _ssim(rec, img)
    assert torch.equal(of_batch_B, torch.cat([_ssim(rec[i : i + 1], img[i : i + 1]) for i in range(20)]))
    assert most.numbers < 5 * 16 * 3 * 140**2, "five maps of 16 images, with their margins"


class Most(TorchDispatchMode):
    """Notes the most numbers of a result."""

    numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, Tensor):
            self.numbers = max(self.numbers, made.numel())
        return made
