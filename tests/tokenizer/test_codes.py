"""Codes by hand: which is nearest, what a scale adds, what the losses are."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from tests.bounds import SAME, float64
from varlab.rng import Rng
from varlab.tokenizer import Phi, Quantizer
from varlab.tokenizer.codebook import Codebook, entropy_loss


def codebook(**changes: bool) -> Codebook:
    """Codes of very different lengths, so that distance and angle choose differently."""
    made = Codebook(**({"vocab_size": 30, "code_dim": 3, "init": 1.0, "normalise": False, "cosine": False} | changes))
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        made.weight.copy_(torch.randn(30, 3, generator=draw) * torch.rand(30, 1, generator=draw) * 4)
    return made


@pytest.mark.parametrize("angle", [False, True])
def test_the_nearest_code(angle: bool) -> None:
    made, z = codebook(normalise=angle), torch.randn(200, 3, generator=torch.Generator().manual_seed(1)) * 2
    if angle:
        expected = F.cosine_similarity(z[:, None], made.weight[None], dim=-1).argmax(1)
    else:
        expected = (z[:, None] - made.weight[None]).norm(dim=-1).argmin(1)
    assert torch.equal(made.nearest(z), expected) and len(expected.unique()) > 10
    with torch.no_grad():
        made.weight[7] = made.weight[3]
    assert int(made.nearest(made.weight[7:8])) == 3, "the first of equally near ones"


def test_codes_have_length_one_wherever_they_are_used() -> None:
    made, idx = codebook(cosine=True), torch.tensor([[4, 9, 4]])
    unit = made.weight / made.weight.norm(dim=1, keepdim=True)
    torch.testing.assert_close(made.codes(), unit)
    torch.testing.assert_close(made.embed(idx), unit[idx])
    plain = codebook()
    assert torch.equal(plain.codes(), plain.weight) and torch.equal(plain.embed(idx), plain.weight[idx])
    assert made.normalise and not plain.normalise and codebook(normalise=True).normalise


def test_entropies_by_hand() -> None:
    """Two vectors, two codes; the mean entropy of the choices minus that of the mean choice."""
    z, codes, eps = torch.tensor([[1.0, 0.0], [0.0, 2.0]]), torch.tensor([[1.0, 1.0], [0.0, 1.0]]), 1e-5
    each, mean = 0.0, [0.0, 0.0]
    for x, y in z.tolist():
        logits = [-((x - a) ** 2 + (y - b) ** 2) / 0.7 for a, b in codes.tolist()]
        total = sum(map(math.exp, logits))
        p = [math.exp(value) / total for value in logits]
        each -= sum(q * math.log(q) for q in p) / 2
        mean = [m + q / 2 for m, q in zip(mean, p, strict=True)]
    expected = each + sum(m * math.log(m + eps) for m in mean)
    with float64():
        found = entropy_loss(z.double(), codes.double(), temperature=0.7)
    assert float(found) == pytest.approx(expected, rel=1e-4)


def test_revival_takes_the_place_of_the_dead_alone() -> None:
    made, stream = codebook(), Rng(0).stream("revive")
    before, dead = made.weight.detach().clone(), torch.arange(30) % 7 == 2
    candidates = torch.randn(5, 3)
    assert made.revive(dead & False, candidates, stream) == 0 == made.revive(dead, candidates[:0], stream)
    assert torch.equal(made.weight, before)
    assert made.revive(dead, candidates, stream) == 4
    assert torch.equal(made.weight[~dead], before[~dead])
    assert torch.equal(made.weight[dead], candidates[stream.integers(5, 4)[0]])


def test_latents_of_a_cosine_codebook_have_length_one() -> None:
    """Over the channels, at each place of a grid that is no square."""
    made = Quantizer(scales=[[2, 3]], vocab_size=16, code_dim=4, phi_count=0, cosine=True)
    f = torch.randn(2, 4, 2, 3, generator=torch.Generator().manual_seed(0)) * 3
    unit = f / f.norm(dim=1, keepdim=True)
    torch.testing.assert_close(made._latents(f), unit)
    quantized = made(f)
    torch.testing.assert_close(quantized.f_hat_BChw.norm(dim=1), torch.ones(2, 2, 3))
    idx = (unit.flatten(2).transpose(1, 2) @ made.codebook.codes().T).argmax(-1)
    assert torch.equal(quantized.maps[0], idx) and torch.equal(made.encode(f)[0], idx)


@pytest.mark.parametrize(("beta_term", "weights"), [("commitment", (0.3, 1.0)), ("codebook", (1.0, 0.3))])
def test_a_residual_quantizer_by_hand(beta_term: str, weights: tuple[float, float]) -> None:
    """Two scales: area down, nearest, bicubic up, φ; the loss is the mean over the scales of both terms."""
    with float64():
        made = Quantizer(
            scales=[[1, 2], [2, 4]],
            vocab_size=12,
            code_dim=3,
            phi_count=1,
            code_init=12.0,
            beta=0.3,
            beta_term=beta_term,
        ).double()
        f = torch.randn(2, 3, 2, 4, generator=torch.Generator().manual_seed(0)).double()
        f_hat, losses, maps, candidates = torch.zeros_like(f), [], [], []
        for k, (h, w) in enumerate([(1, 2), (2, 4)]):
            rest = F.interpolate(f - f_hat, size=(h, w), mode="area") if k == 0 else f - f_hat
            rows = rest.permute(0, 2, 3, 1).reshape(-1, 3)
            idx = (rows[:, None] - made.codebook.weight).norm(dim=-1).argmin(1)
            maps.append(idx.view(2, -1))
            candidates.append(rows.view(2, -1, 3))
            h_BChw = made.codebook.weight[idx].view(2, h, w, 3).permute(0, 3, 1, 2)
            h_BChw = F.interpolate(h_BChw, size=(2, 4), mode="bicubic") if k == 0 else h_BChw
            phi = made.phi[0]
            f_hat = f_hat + 0.5 * h_BChw + 0.5 * F.conv2d(h_BChw, phi.conv.weight, phi.conv.bias, padding=1)
            losses.append(sum(weight * (f - f_hat).square().mean() for weight in weights))
        quantized = made(f)
    torch.testing.assert_close(quantized.f_hat_BChw, f_hat, rtol=1e2 * SAME, atol=1e2 * SAME)
    torch.testing.assert_close(quantized.vq_loss, sum(losses) / 2, rtol=1e2 * SAME, atol=1e2 * SAME)
    assert all(torch.equal(a, b) for a, b in zip(quantized.maps, maps, strict=True))
    assert quantized.counts_KV.tolist() == [m.flatten().bincount(minlength=12).tolist() for m in maps]
    torch.testing.assert_close(quantized.candidates_NC, torch.cat(candidates, 1).flatten(0, 1))


def test_a_phi_is_a_share_of_a_convolution() -> None:
    made, h = Phi(code_dim=3, ratio=0.2), torch.randn(1, 3, 4, 5)
    torch.testing.assert_close(made(h), 0.8 * h + 0.2 * F.conv2d(h, made.conv.weight, made.conv.bias, padding=1))
