"""Discriminators, and what is done to what they see."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.bounds import ROUNDING, SAME, float64
from varlab.losses.diff_augment import POLICIES, DiffAugment
from varlab.losses.dino import DinoDiscriminator
from varlab.losses.discriminator import PatchGAN
from varlab.losses.regularisers import LeCam, consistency
from varlab.losses.stylegan import StyleGANDiscriminator
from varlab.rng import Rng
from varlab.types import VarlabError

pytestmark = pytest.mark.numeric

IMG = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1


def vit_state(width: int = 16, depth: int = 3, grid: int = 3) -> dict[str, torch.Tensor]:
    """A random ViT under DINO's official names."""
    shapes = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, 1 + grid**2, width),
        "patch_embed.proj.weight": (width, 3, 16, 16),
    }
    shapes |= {"patch_embed.proj.bias": (width,), "norm.weight": (width,), "norm.bias": (width,)}
    for i in range(depth):
        for name, (out, before) in {
            "attn.qkv": (3 * width, width), "attn.proj": (width, width),
            "mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width),
        }.items():  # fmt: skip
            shapes |= {f"blocks.{i}.{name}.weight": (out, before), f"blocks.{i}.{name}.bias": (out,)}
        for name in ("norm1", "norm2"):
            shapes |= {f"blocks.{i}.{name}.weight": (width,), f"blocks.{i}.{name}.bias": (width,)}
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(shape, generator=generator) / 4 for name, shape in shapes.items()}


def dino(path: Path, **changes) -> DinoDiscriminator:
    torch.save(vit_state(), path)
    asked = dict(weights=str(path), sha256=None, heads=2, taps=[0, 2], size=48, kernel=3)
    return DinoDiscriminator(**(asked | changes))


@pytest.fixture(params=["patchgan", "actnorm", "stylegan", "dino"])
def discriminator(request: pytest.FixtureRequest, tmp_path: Path) -> nn.Module:
    with Rng(0).scope("init/discriminator"):
        return {
            "patchgan": lambda: PatchGAN(width=8, layers=1, norm="group"),
            "actnorm": lambda: PatchGAN(width=8, layers=1, norm="actnorm"),
            "stylegan": lambda: StyleGANDiscriminator(width=8, widest=16, layers=2, group=1),
            "dino": lambda: dino(tmp_path / "vit.pth"),
        }[request.param]()


def test_a_logit_belongs_to_its_image_and_its_gradient_arrives(discriminator: nn.Module) -> None:
    discriminator.train()
    discriminator(IMG)  # ActNorm is set by the first batch, and spectral norms settle
    discriminator.eval().double()
    img = IMG.double().requires_grad_(True)
    with float64():
        logits = discriminator(img)
        assert logits.shape[0] == len(img) and logits.isfinite().all()
        torch.testing.assert_close(discriminator(img[2:3]), logits[2:3], rtol=SAME, atol=SAME)
    logits[2].sum().backward()
    assert img.grad is not None and img.grad[2].abs().max() > 0 and not img.grad[[0, 1, 3, 4, 5]].any()


def test_a_discriminator_learns_to_tell(discriminator: nn.Module) -> None:
    """Noise from flat images."""
    discriminator.train()
    flat = IMG.mean((2, 3), keepdim=True).expand_as(IMG)
    optimizer = torch.optim.Adam(discriminator.parameters(), lr=2e-3, betas=(0.0, 0.99))
    for _ in range(30):
        loss = torch.relu(1 - discriminator(IMG)).mean() + torch.relu(1 + discriminator(flat)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert discriminator(IMG).mean() > discriminator(flat).mean() + 0.5


def test_the_frozen_vit_is_trained_by_nobody_and_saved_nowhere(tmp_path: Path) -> None:
    model = dino(tmp_path / "vit.pth")
    assert all(name.startswith("heads.") for name, _ in model.named_parameters())
    assert not any(name.startswith("vit.") for name in model.state_dict())
    before = {name: value.clone() for name, value in model.vit.named_buffers()}
    assert len(before) == len(vit_state()) and not model.train().vit.training
    assert torch.equal(before["cls_token"], vit_state()["cls_token"])


def test_positions_are_interpolated_to_the_images_grid(tmp_path: Path) -> None:
    small, large = dino(tmp_path / "vit.pth", size=48), dino(tmp_path / "vit.pth", size=64)
    assert small(IMG).shape == (6, 2 * (1 + 9)) and large(IMG).shape == (6, 2 * (1 + 16))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weights": None}, "needs the weights"),
        ({"weights": "nowhere.pth"}, "no weights at nowhere.pth"),
        ({"sha256": "abc"}, "is another file"),
        ({"taps": [7]}, "some of the ViT's 3 blocks"),
        ({"taps": []}, "some of the ViT's 3 blocks"),
    ],
)
def test_weights_that_are_not_there_are_said(change: dict, says: str, tmp_path: Path) -> None:
    with pytest.raises(VarlabError, match=says):
        dino(tmp_path / "vit.pth", **change)


@pytest.mark.parametrize("key", ["cls_token", "blocks.1.attn.proj.bias"])
def test_a_missing_key_is_named(key: str, tmp_path: Path) -> None:
    state = vit_state()
    del state[key]
    torch.save(state, tmp_path / "other.pth")
    with pytest.raises(VarlabError, match=key):
        dino(tmp_path / "vit.pth", weights=str(tmp_path / "other.pth"))


def test_actnorm_is_set_once_and_travels_in_checkpoints() -> None:
    with Rng(0).scope("x"):
        model = PatchGAN(width=8, layers=1, norm="actnorm").double().train()
    norm = next(m for m in model.modules() if hasattr(m, "initialized"))
    seen: list[torch.Tensor] = []
    hook = norm.register_forward_hook(lambda _m, _i, out: seen.append(out.detach()))
    model(IMG.double())
    assert seen[0].mean((0, 2, 3)).abs().max() < SAME
    assert (seen[0].std((0, 2, 3)) - 1).abs().max() < 1e-3  # it divides by the deviation and a small number
    before = norm.loc.clone()
    model(IMG.double() * 3)
    hook.remove()
    assert torch.equal(norm.loc, before)
    again = PatchGAN(width=8, layers=1, norm="actnorm").double().train()
    again.load_state_dict(model.state_dict())
    assert torch.equal(again(IMG.double()), model(IMG.double()))


def test_minibatch_deviation_sees_fakes_that_are_all_alike() -> None:
    with Rng(0).scope("x"):
        model = StyleGANDiscriminator(width=8, widest=16, layers=1, group=4).eval()
    alike = IMG[:1].expand(4, -1, -1, -1)
    assert (model(alike)[0] - model(torch.cat([IMG[:1], IMG[1:4]]))[0]).abs() > 1e-4


# -- augmentation ------------------------------------------------------------------------------------------------------

IDS = torch.arange(6) + 40


@given(st.sets(st.sampled_from(POLICIES)), st.floats(0, 1), st.integers(0, 6))
@settings(max_examples=30, deadline=None)
def test_a_samples_draws_are_its_own(policies: set[str], rate: float, split: int) -> None:
    augment = DiffAugment(policies=sorted(policies), rate=rate)
    whole = augment(IMG, Rng(3).stream("augment_disc", IDS))
    parts = [
        augment(IMG[p], Rng(3).stream("augment_disc", IDS[p]))
        for p in (slice(0, split), slice(split, 6))
        if len(IDS[p])
    ]
    assert torch.equal(torch.cat(parts), whole) and whole.shape == IMG.shape


def test_rate_zero_is_the_identity_and_gradients_pass() -> None:
    stream = Rng(3).stream("augment_disc", IDS)
    assert torch.equal(DiffAugment(policies=POLICIES, rate=0.0)(IMG, stream), IMG)
    img = IMG.clone().requires_grad_(True)
    DiffAugment(policies=POLICIES, rate=1.0)(img, stream).square().sum().backward()
    assert img.grad is not None and (img.grad.flatten(1).abs().sum(1) > 0).all()


def test_each_policy_does_what_its_name_says() -> None:
    stream = Rng(3).stream("augment_disc", IDS)
    ones = torch.ones_like(IMG)
    cut = DiffAugment(policies=["cutout"], rate=1.0)(ones, stream)
    assert set(cut.unique().tolist()) == {0.0, 1.0} and 0.5 < cut.mean() < 1
    moved = DiffAugment(policies=["translation"], rate=1.0)(IMG, stream)
    inside = {round(float(v), 5) for v in IMG.flatten()} | {0.0}
    assert {round(float(v), 5) for v in moved.flatten()} <= inside and (moved != IMG).any()
    coloured = DiffAugment(policies=["color"], rate=1.0)(ones, stream)
    assert all(image.unique().numel() <= 3 for image in coloured)


@pytest.mark.parametrize("bad", [{"policies": ["colour"], "rate": 1.0}, {"policies": [], "rate": 2.0}])
def test_bad_augmentation_is_said(bad: dict) -> None:
    with pytest.raises(VarlabError, match=r"loss\.gan\.augment"):
        DiffAugment(**bad)


# -- regularisation ----------------------------------------------------------------------------------------------------


def test_consistency_is_the_mean_squared_difference() -> None:
    a, b = (Rng(0).stream(name, torch.arange(4)).normal(3).double() for name in "ab")
    with float64():
        torch.testing.assert_close(consistency(a, b), ((a - b) ** 2).sum() / 12, rtol=SAME, atol=SAME)


def test_lecam_holds_logits_to_the_other_sides_average() -> None:
    lecam = LeCam(decay=0.9)
    real, fake = torch.tensor([2.0, -1.0]), torch.tensor([-3.0, 0.5])
    assert lecam(real, fake) == 0
    lecam.observe(torch.tensor(1.0), torch.tensor(-1.0))
    lecam.observe(torch.tensor(2.0), torch.tensor(0.0))
    average_real, average_fake = 0.9 * 1.0 + 0.1 * 2.0, 0.9 * -1.0
    wanted = ((real - average_fake).clamp_min(0) ** 2).mean() + ((average_real - fake).clamp_min(0) ** 2).mean()
    torch.testing.assert_close(
        lecam(real, fake), wanted, rtol=8 * ROUNDING, atol=0
    )  # two squares, each of a few operations
    again = LeCam(decay=0.9)
    again.load_state(lecam.state())
    assert again(real, fake) == lecam(real, fake)
