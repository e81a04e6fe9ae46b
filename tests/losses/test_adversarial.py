"""The adversarial game against its formulas: losses, adaptive weight, PatchGAN."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.bounds import SAME, float64
from varlab.errors import VarlabError
from varlab.losses.adaptive_weight import adaptive_weight, discriminator_factor
from varlab.losses.adversarial import discriminator_loss, generator_loss
from varlab.losses.discriminator import PatchGAN
from varlab.losses.reconstruction import l1, l2
from varlab.rng import Rng

pytestmark = pytest.mark.numeric

logits = st.lists(st.floats(-20, 20), min_size=1, max_size=5)


@given(logits, logits)
def test_the_games_are_their_formulas(real: list[float], fake: list[float]) -> None:
    def mean(values: list[float]) -> float:
        return sum(values) / len(values)

    hinge = 0.5 * (mean([max(0.0, 1 - r) for r in real]) + mean([max(0.0, 1 + f) for f in fake]))
    vanilla = 0.5 * (mean([math.log1p(math.exp(-r)) for r in real]) + mean([math.log1p(math.exp(f)) for f in fake]))
    with float64():
        real_N, fake_N = torch.tensor(real), torch.tensor(fake)
        assert float(discriminator_loss("hinge", real_N, fake_N)) == pytest.approx(hinge, rel=SAME, abs=SAME)
        assert float(discriminator_loss("vanilla", real_N, fake_N)) == pytest.approx(vanilla, rel=SAME, abs=SAME)
        assert float(generator_loss(fake_N)) == pytest.approx(-mean(fake), rel=SAME, abs=SAME)


def test_another_game_is_refused() -> None:
    with pytest.raises(VarlabError, match="hinge or vanilla"):
        discriminator_loss("wasserstein", torch.zeros(1), torch.zeros(1))


def test_losses_are_float32_on_bfloat16_input() -> None:
    x, y = torch.full((2, 3), 0.3, dtype=torch.bfloat16), torch.ones(2, 3, dtype=torch.bfloat16)
    for loss in (l1(x, y), l2(x, y), generator_loss(x), discriminator_loss("hinge", x, y)):
        assert loss.dtype == torch.float32 and loss.ndim == 0
    assert float(l1(x, y)) == pytest.approx(0.7, abs=1e-2) and float(l2(x, y)) == pytest.approx(0.49, abs=1e-2)


@given(st.floats(0, 1e3), st.floats(0, 1e3), st.floats(1e-6, 1e-2))
def test_lambda_is_equation_7(rec: float, gan: float, delta: float) -> None:
    with float64():
        grad_rec = torch.tensor([0.6, -0.8]) * rec
        grad_gan = torch.tensor([[0.0, 1.0]]) * gan
        free = adaptive_weight(grad_rec, grad_gan, delta=delta, clamp_min=0.0, clamp_max=math.inf)
        clamped = adaptive_weight(grad_rec, grad_gan, delta=delta, clamp_min=0.015, clamp_max=1e4)
    assert float(free) == pytest.approx(rec / (gan + delta), rel=SAME, abs=SAME)
    assert float(clamped) == pytest.approx(min(max(float(free), 0.015), 1e4), rel=SAME)


def test_lambda_is_detached_and_balances_the_two_gradients() -> None:
    """Times lambda, the adversarial gradient by the last layer is as long as the reconstruction's."""
    last = nn.Parameter(torch.tensor([1.0, 2.0]).double())
    (grad_rec,) = torch.autograd.grad((last**2).sum(), last, create_graph=True)  # still in the graph
    (grad_gan,) = torch.autograd.grad((last * 1e-3).sum(), last)
    with float64():
        weight = adaptive_weight(grad_rec, grad_gan, delta=0.0, clamp_min=0.0, clamp_max=1e9)
    assert not weight.requires_grad
    assert float((weight * grad_gan).norm()) == pytest.approx(float(grad_rec.detach().norm()), rel=SAME)


def test_the_game_starts_on_the_image() -> None:
    assert [discriminator_factor(images, 100) for images in (0, 99, 100, 101)] == [0.0, 0.0, 1.0, 1.0]
    assert discriminator_factor(0, 0) == 1.0


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_patchgan_is_the_official_one() -> None:
    """Parameter counts of pix2pix's NLayerDiscriminator (ndf 64, 3 layers): with BatchNorm, and without affine norms."""
    assert parameters(PatchGAN(width=64, layers=3, norm="batch")) == 2_765_633
    assert parameters(PatchGAN(width=64, layers=3, norm="none")) == 2_764_737
    assert PatchGAN(width=64, layers=3, norm="batch")(torch.zeros(2, 3, 256, 256)).shape == (2, 1, 30, 30)


@pytest.mark.parametrize(("layers", "patch"), [(1, 16), (2, 34), (3, 70)])
def test_a_logit_sees_its_patch_and_no_more(layers: int, patch: int) -> None:
    """The receptive field, measured by the gradient of one central logit."""
    with Rng(0).scope("init"):
        net = PatchGAN(width=4, layers=layers, norm="none")
    img = Rng(0).stream("sample").uniform(3, 128, 128).requires_grad_()
    logit = net(img)
    logit[0, 0, logit.shape[2] // 2, logit.shape[3] // 2].backward()
    assert img.grad is not None
    seen_HW = img.grad.abs().sum((0, 1)) > 0
    assert (int(seen_HW.any(0).sum()), int(seen_HW.any(1).sum())) == (patch, patch)


def test_patchgan_starts_as_pix2pix() -> None:
    with Rng(0).scope("init"):
        net = PatchGAN(width=64, layers=3, norm="batch")
    convolutions = torch.cat([m.weight.detach().flatten() for m in net.modules() if isinstance(m, nn.Conv2d)])
    gains = torch.cat([m.weight.detach() for m in net.modules() if isinstance(m, nn.BatchNorm2d)])
    assert float(convolutions.std()) == pytest.approx(0.02, rel=0.01) and abs(float(convolutions.mean())) < 1e-4
    assert float(gains.mean()) == pytest.approx(1.0, abs=0.01) and float(gains.std()) == pytest.approx(0.02, rel=0.2)


@pytest.mark.parametrize("norm", ["group", "none"])
def test_group_norm_judges_each_image_alone(norm: str) -> None:
    """What accumulation needs: a logit doesn't depend on its batch."""
    with Rng(0).scope("init"):
        net = PatchGAN(width=32, layers=2, norm=norm).double()
    img = Rng(0).stream("sample", torch.arange(4)).uniform(3, 32, 32).double()
    torch.testing.assert_close(net(img)[:1], net(img[:1]), rtol=SAME, atol=SAME)


def test_an_unknown_norm_is_refused() -> None:
    with pytest.raises(VarlabError, match=r"'layer'.*batch, group, actnorm, none"):
        PatchGAN(width=8, layers=1, norm="layer")
