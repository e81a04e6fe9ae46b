"""Law 6: what the official VQGAN code computes of its losses: discriminators, LPIPS, adaptive weight, both games."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.bounds import ROUNDING, Measured
from tests.parity.imported import agree, golden
from varlab.losses.adversarial import discriminator_loss, generator_loss
from varlab.losses.discriminator import PatchGAN
from varlab.losses.perceptual import LPIPS

pytestmark = pytest.mark.numeric

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

    def measure() -> Measured:
        model = official(name)
        with torch.no_grad():
            evaluated = model.eval()(IMG.float())
            real = model.train()(IMG.float())
            fake = model(REC.float())
        state = {f"{name}.after.{key.replace('net.', 'main.')}": value for key, value in model.state_dict().items()}
        measured = {key: state[key] for key in REFERENCE.meta["tensors"] if key.startswith(f"{name}.after.")}
        measured |= {f"{name}.{kind}": discriminator_loss(kind, real, fake) for kind in ("hinge", "vanilla")}
        return measured | {f"{name}.eval_real": evaluated, f"{name}.train_real": real, f"{name}.train_fake": fake}

    agree(REFERENCE, measure, {f"{name}.{kind}": REFERENCE.scalars[f"{name}.{kind}"] for kind in ("hinge", "vanilla")})


def test_the_discriminators_game() -> None:
    def measure() -> Measured:
        model = official("disc").train()
        real, fake = model(IMG.float()), model(REC.float())
        measured = {kind: discriminator_loss(kind, real, fake) for kind in ("hinge", "vanilla")}
        measured["hinge"].backward(retain_graph=True)
        first = model.net[0].weight.grad
        assert isinstance(first, Tensor)
        measured |= {"real": real.mean(), "fake": fake.mean(), "disc_grad.main.0.weight": first}
        return measured | {"g_loss": generator_loss(official("disc").train()(REC.float()))}

    scalars = {kind: REFERENCE.scalars[f"disc_loss.{kind}.step20"]["loss"] for kind in ("hinge", "vanilla")}
    logits = REFERENCE.scalars["disc_loss.hinge.step20"]
    scalars |= {"real": logits["train/logits_real"], "fake": logits["train/logits_fake"]}
    agree(REFERENCE, measure, scalars | {"g_loss": REFERENCE.scalars["gen_loss.step20"]["train/g_loss"]})


@pytest.fixture(scope="module")
def lpips(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], nn.Module]:
    """LPIPS from files as they are published: torchvision's VGG16 and the authors' linear layers."""
    folder: Path = tmp_path_factory.mktemp("lpips")
    state = REFERENCE.state("lpips")
    vgg = {f"features.{key.split('.', 2)[2]}": value for key, value in state.items() if key.startswith("net.")}
    torch.save(vgg, folder / "vgg.pth")
    torch.save({key: value for key, value in state.items() if key.startswith("lin")}, folder / "lin.pth")
    files = {"vgg": str(folder / "vgg.pth"), "lpips": str(folder / "lin.pth")}
    return lambda: LPIPS(**files, vgg_sha256=None, lpips_sha256=None)


def test_lpips_and_its_gradient(lpips: Callable[[], nn.Module]) -> None:
    def measure() -> Measured:
        rec = REC.float().clone().requires_grad_(True)
        distance = lpips().distance(IMG.float(), rec)
        distance.mean().backward()
        assert rec.grad is not None
        return {"lpips.value": distance.view(-1, 1, 1, 1), "lpips.grad_rec": rec.grad}

    agree(REFERENCE, measure)


def test_before_the_start_the_factor_is_zero() -> None:
    """The official code multiplies by disc_factor; here the adversarial part is not computed at all."""
    first, later = (REFERENCE.scalars[f"gen_loss.step{n}"] for n in (0, 20))
    assert first["train/disc_factor"] == 0 and later["train/disc_factor"] == 1
    without = first["train/nll_loss"] + first["train/quant_loss"]
    for row, sum_of_parts in ((first, without), (later, without + later["train/d_weight"] * later["train/g_loss"])):
        assert row["loss"] == pytest.approx(
            sum_of_parts, rel=4 * ROUNDING
        )  # numbers of the file: at most four roundings
