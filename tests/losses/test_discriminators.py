"""Discriminators, and what is done to what they see."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tests.bounds import ROUNDING, SAME, float64
from varlab.losses.diff_augment import POLICIES, DiffAugment, faded
from varlab.losses.dino import DinoDiscriminator, GlobalBatchNorm
from varlab.losses.discriminator import PatchGAN
from varlab.losses.regularisers import LeCam, consistency, gradient_penalty
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


def test_a_head_before_all_blocks_and_a_class_token_that_is_read_out(tmp_path: Path) -> None:
    model = dino(tmp_path / "vit.pth", taps=[-1, 0, 2], readout=True).eval()
    plain = dino(tmp_path / "vit.pth", taps=[-1, 0, 2]).eval()
    first, *_ = plain.frozen_forward(IMG)
    state = vit_state()
    assert model(IMG).shape == (6, 3 * 9) and first.shape == (6, 10, 16)
    torch.testing.assert_close(first[:, 0], (state["cls_token"] + state["pos_embed"][:, :1])[:, 0].expand(6, -1))
    plain.load_state_dict(model.state_dict())
    read = [x_BND[:, 1:] + x_BND[:, :1] for x_BND in plain.frozen_forward(IMG)]
    by_hand = torch.cat([head(x_BND) for head, x_BND in zip(plain.heads, read, strict=True)], 1)
    torch.testing.assert_close(model(IMG), by_hand)


def test_key_biases_of_the_vit_change_nothing(tmp_path: Path) -> None:
    """They add the same to all scores of a query: vaex, which zeroes them, computes what we compute."""
    state = vit_state()
    for name, bias in state.items():
        if name.endswith("attn.qkv.bias"):
            bias[16:32] = 0.0
    torch.save(state, tmp_path / "zeroed.pth")
    with_biases, without = dino(tmp_path / "vit.pth"), dino(tmp_path / "vit.pth", weights=str(tmp_path / "zeroed.pth"))
    for a, b in zip(with_biases.frozen_forward(IMG), without.frozen_forward(IMG), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_the_first_weights_of_the_heads(tmp_path: Path) -> None:
    heads = dino(tmp_path / "vit.pth", std=0.02, norm="batch").heads
    weights = [p for name, p in heads.named_parameters() if name.endswith("weight.original")]
    assert len(weights) == 2 * 3 and all(0.005 < float(w.detach().std()) < 0.03 for w in weights)
    biases = [p for name, p in heads.named_parameters() if name.endswith(("first.bias", "second.bias", "out.bias"))]
    assert len(biases) == 2 * 3 and not any(bool(b.any()) for b in biases)


def test_a_norm_over_ranks_is_batchnorm(tmp_path: Path) -> None:
    """With one rank, whose sums are reduced as those of many are."""
    x = torch.randn(4, 5, 7, generator=torch.Generator().manual_seed(0)).double().requires_grad_()
    ours, reference = GlobalBatchNorm(5, eps=1e-6).double(), nn.BatchNorm1d(5, eps=1e-6).double()
    (wanted,) = torch.autograd.grad(reference(x).square().mul(x.detach()).sum(), x)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("torch.distributed.get_world_size", lambda: 2)  # so that it reduces
            (grad,) = torch.autograd.grad(ours(x).square().mul(x.detach()).sum(), x)
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(grad, wanted, rtol=1e-5, atol=1e-6)  # the sums are in float32
    torch.testing.assert_close(ours.running_var, reference.running_var, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("torch_bias", [True, None])
def test_biases_of_a_patchgan(torch_bias: bool | None) -> None:
    """BatchNorm's convolutions have none; the others start as torch makes them, if that is asked for."""
    with Rng(0).scope("x"):
        model = PatchGAN(width=8, layers=2, norm="batch", torch_bias=torch_bias)
    convs = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert [c.bias is None for c in convs] == [False, True, True, False]
    assert all(bool(c.bias.any()) == bool(torch_bias) for c in (convs[0], convs[-1]))
    assert all(float(c.weight.std()) == pytest.approx(0.02, rel=0.1) for c in convs[1:3])


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"weights": None}, "needs the weights"),
        ({"weights": "nowhere.pth"}, "no weights at nowhere.pth"),
        ({"sha256": "abc"}, "is another file"),
        ({"taps": [7]}, "some of the ViT's 3 blocks"),
        ({"taps": []}, "some of the ViT's 3 blocks"),
        ({"taps": [-2]}, "some of the ViT's 3 blocks"),
        ({"norm": "layer"}, "use one of group, batch"),
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


def test_policies_are_applied_in_their_order() -> None:
    """Moved before it is coloured, an image has coloured edges; moved after, black ones."""
    stream, flat = Rng(3).stream("augment_disc", torch.arange(40)), torch.full((40, 3, 16, 16), 0.25)
    before = DiffAugment(policies=["translation", "color"], rate=1.0)(flat, stream)
    after = DiffAugment(policies=["color", "translation"], rate=1.0)(flat, stream)
    assert bool((after == 0).any()) and not bool((before == 0).any())


@pytest.mark.parametrize(("share", "side"), [(0.5, 8), (0.25, 4)])
def test_the_mean_area_that_is_cut_out(share: float, side: int) -> None:
    """A centre anywhere from edge to edge: 17 × 17 places of the rectangle, of which the first and last lose up to a half."""
    stream, ones = Rng(3).stream("augment_disc", torch.arange(20_000)), torch.ones(20_000, 1, 16, 16)
    cut = DiffAugment(policies=["cutout"], rate=1.0, cutout=share)(ones, stream)
    expected = ((17 * side - 2 * sum(range(1, side // 2 + 1))) / (17 * 16)) ** 2
    area_B = 1 - cut.mean((1, 2, 3))
    error = float(area_B.std()) / 20_000**0.5
    assert abs(float(area_B.mean()) - expected) < 4 * error and float(area_B.max()) == pytest.approx(share**2)


def test_a_crop_is_a_place_of_the_image_or_the_whole() -> None:
    stream = Rng(3).stream("augment_disc", torch.arange(200))
    img = torch.arange(16 * 16.0).view(1, 1, 16, 16).expand(200, 3, 16, 16)
    made = DiffAugment(policies=[], rate=1.0, crop=8)(img, stream)
    whole = torch.nn.functional.avg_pool2d(img[:1], 2)
    is_whole = (made == whole).all((1, 2, 3))
    corner = made[:, 0, 0, 0]
    places = corner[:, None, None, None] + (torch.arange(8.0)[:, None] * 16 + torch.arange(8.0))
    assert bool((is_whole | (made == places).all((1, 2, 3))).all()) and 70 < int(is_whole.sum()) < 130
    rows, columns = corner[~is_whole] // 16, corner[~is_whole] % 16
    assert set(rows.tolist()) == set(columns.tolist()) == {float(n) for n in range(9)}
    assert DiffAugment(policies=[], rate=1.0, crop=24)(IMG[:, :, :16, :16], Rng(3).stream("a", IDS)).shape[2:] == (
        24,
        24,
    )


def test_a_blur_fades_out_and_keeps_the_mean() -> None:
    """σ is √(H/2) at first, and 2^-(x/σ)² is a half at a distance of σ."""
    point = torch.zeros(1, 3, 33, 33)
    point[:, :, 16, 16] = 1.0
    for left in (1.0, 0.5):
        blurred, sigma = faded(point, left), left * (33 / 2) ** 0.5
        line = blurred[0, 0, 16]
        assert float(blurred.sum()) == pytest.approx(3, rel=1e-5)
        assert float(line[20] / line[16]) == pytest.approx(2 ** -((4 / sigma) ** 2), rel=1e-4)
        assert torch.equal(line, blurred[0, 0, :, 16])
    assert torch.equal(faded(IMG, 0.01), IMG) and torch.equal(faded(IMG, 0.0), IMG)


@pytest.mark.parametrize("bad", [{"policies": ["colour"], "rate": 1.0}, {"policies": [], "rate": 2.0}])
def test_bad_augmentation_is_said(bad: dict) -> None:
    with pytest.raises(VarlabError, match=r"loss\.gan\.augment"):
        DiffAugment(**bad)


# -- regularisation ----------------------------------------------------------------------------------------------------


def test_consistency_is_the_mean_squared_difference() -> None:
    a, b = (Rng(0).stream(name, torch.arange(4)).normal(3).double() for name in "ab")
    with float64():
        torch.testing.assert_close(consistency(a, b), ((a - b) ** 2).sum() / 12, rtol=SAME, atol=SAME)


def test_r1_is_the_squared_gradient_of_each_sample() -> None:
    """D(x) = |x|²/2 has the gradient x; for the weight w in D(x) = w·Σx it is w, whose penalty grows by 2w·pixels."""
    img = IMG.double()
    penalty = gradient_penalty(lambda x: x.square().sum((1, 2, 3)) / 2, img)
    torch.testing.assert_close(penalty, img.square().sum((1, 2, 3)).mean(), rtol=SAME, atol=SAME)
    assert not img.requires_grad, "the caller's images stay as they are"
    w = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    gradient_penalty(lambda x: w * x.sum((1, 2, 3)), img).backward()
    assert w.grad is not None and float(w.grad) == pytest.approx(2 * 0.7 * img[0].numel())


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
