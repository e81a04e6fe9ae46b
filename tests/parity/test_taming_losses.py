"""Law 6: what the official VQGAN code computes of its losses: discriminators, LPIPS, adaptive weight, both games."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.parity.imported import FLOAT, GRADIENT, close, golden
from varlab.losses.adversarial import discriminator_loss, generator_loss
from varlab.losses.discriminator import PatchGAN
from varlab.losses.perceptual import LPIPS

REFERENCE = golden("taming")
IMG, REC = REFERENCE.image(), REFERENCE["rec"]


def official(name: str) -> PatchGAN:
    """The official discriminator's weights in ours: main.N is net.N."""
    model = PatchGAN(width=16, layers=3, norm="actnorm" if name == "disc_actnorm" else "batch")
    model.load_state_dict({key.replace("main.", "net."): value for key, value in REFERENCE.state(name).items()})
    return model


@pytest.mark.parametrize("name", ["disc", "disc_actnorm"])
def test_discriminators(name: str) -> None:
    """Evaluation, then two calls in training, which change statistics or set ActNorm."""
    model = official(name)
    with torch.no_grad():
        close(REFERENCE, f"{name}.eval_real", model.eval()(IMG))
        real = model.train()(IMG)
        fake = model(REC)
    close(REFERENCE, f"{name}.train_real", real)
    close(REFERENCE, f"{name}.train_fake", fake)
    state = {key.replace("net.", "main."): value for key, value in model.state_dict().items()}
    for key in (n for n in REFERENCE.meta["tensors"] if n.startswith(f"{name}.after.")):
        close(REFERENCE, key, state[key.removeprefix(f"{name}.after.")])
    for kind in ("hinge", "vanilla"):
        loss = float(discriminator_loss(kind, real, fake))
        assert abs(loss / REFERENCE.scalars[f"{name}.{kind}"] - 1) < 1e-5


def test_the_discriminators_game() -> None:
    model = official("disc").train()
    real, fake = model(IMG), model(REC)
    for kind in ("hinge", "vanilla"):
        wanted = REFERENCE.scalars[f"disc_loss.{kind}.step20"]
        assert abs(float(discriminator_loss(kind, real, fake).detach()) / wanted["loss"] - 1) < 1e-5
        assert abs(float(real.mean().detach()) / wanted["train/logits_real"] - 1) < 1e-4
        assert abs(float(fake.mean().detach()) / wanted["train/logits_fake"] - 1) < 1e-4
    discriminator_loss("hinge", real, fake).backward()
    first = model.net[0].weight.grad
    assert isinstance(first, Tensor)
    close(REFERENCE, "disc_grad.main.0.weight", first, GRADIENT)
    wanted = REFERENCE.scalars["gen_loss.step20"]["train/g_loss"]
    assert abs(float(generator_loss(official("disc").train()(REC)).detach()) / wanted - 1) < 1e-4


@pytest.fixture(scope="module")
def lpips(tmp_path_factory: pytest.TempPathFactory) -> nn.Module:
    """LPIPS from files as they are published: torchvision's VGG16 and the authors' linear layers."""
    folder: Path = tmp_path_factory.mktemp("lpips")
    state = REFERENCE.state("lpips")
    vgg = {f"features.{key.split('.', 2)[2]}": value for key, value in state.items() if key.startswith("net.")}
    torch.save(vgg, folder / "vgg.pth")
    torch.save({key: value for key, value in state.items() if key.startswith("lin")}, folder / "lin.pth")
    return LPIPS(vgg=str(folder / "vgg.pth"), vgg_sha256=None, lpips=str(folder / "lin.pth"), lpips_sha256=None)


def test_lpips_and_its_gradient(lpips: nn.Module) -> None:
    rec = REC.clone().requires_grad_(True)
    distance = lpips.distance(IMG, rec)
    close(REFERENCE, "lpips.value", distance.detach().view(-1, 1, 1, 1))
    distance.mean().backward()
    assert rec.grad is not None
    close(REFERENCE, "lpips.grad_rec", rec.grad, GRADIENT)


def test_before_the_start_the_factor_is_zero() -> None:
    """The official code multiplies by disc_factor; here the adversarial part is not computed at all."""
    first, later = (REFERENCE.scalars[f"gen_loss.step{n}"] for n in (0, 20))
    assert first["train/disc_factor"] == 0 and later["train/disc_factor"] == 1
    without = first["train/nll_loss"] + first["train/quant_loss"]
    assert abs(first["loss"] / without - 1) < FLOAT
    assert abs(later["loss"] / (without + later["train/d_weight"] * later["train/g_loss"]) - 1) < FLOAT
