"""StyleGAN's and DINO's discriminators and the fading blur, written out once more as plain formulas."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.bounds import SAME, float64
from tests.losses.test_discriminators import dino, vit_state
from varlab.losses.diff_augment import faded
from varlab.losses.dino import GlobalBatchNorm
from varlab.losses.discriminator import PatchGAN
from varlab.losses.stylegan import EqualConv, EqualLinear, MinibatchDeviation, StyleGANDiscriminator
from varlab.rng import Rng

pytestmark = pytest.mark.numeric

IMG = torch.rand(6, 3, 32, 48, generator=torch.Generator().manual_seed(2)).double() * 2 - 1


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e3 * SAME, atol=1e3 * SAME)


def drawn(module: nn.Module) -> nn.Module:
    """With biases that count."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.double().parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator).double())
    return module


# -- StyleGAN2 ---------------------------------------------------------------------------------------------------------


def lrelu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 0.2 * x) * math.sqrt(2)


def conv(layer: EqualConv, x: Tensor, *, stride: int = 1) -> Tensor:
    """Weights over √fan_in; the same size at stride 1."""
    weight = layer.weight / math.sqrt(layer.weight[0].numel())
    return F.conv2d(x, weight, layer.bias, stride=stride, padding=weight.shape[-1] // 2 if stride == 1 else 0)


def linear(layer: EqualLinear, x: Tensor) -> Tensor:
    return x @ layer.weight.T / math.sqrt(layer.weight.shape[1]) + layer.bias


def smooth(x: Tensor, pad: int) -> Tensor:
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0]).double() / 8
    x = F.pad(x, (pad, pad, pad, pad))
    x = sum(tap * x[:, :, i : x.shape[2] - 3 + i] for i, tap in enumerate(taps))
    return sum(tap * x[:, :, :, i : x.shape[3] - 3 + i] for i, tap in enumerate(taps))


def deviation(x: Tensor, group: int) -> Tensor:
    """One number a sample: the mean over channels and places of the deviation over the samples of its group."""
    B = len(x)
    size = max(n for n in range(1, group + 1) if B % n == 0)
    made = torch.zeros(B, 1, *x.shape[2:]).double()
    for b in range(B):
        others = x[[i for i in range(B) if i % (B // size) == b % (B // size)]]
        made[b] = (others.var(0, correction=0) + 1e-8).sqrt().mean()
    return torch.cat([x, made], 1)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_stylegans_discriminator(group: int) -> None:
    """Widths 4, 8, 12 (the widest), two halvings; with one more channel where a group has several samples."""
    net = drawn(StyleGANDiscriminator(width=4, widest=12, layers=2, group=group))
    h = lrelu(conv(net.conv_in, IMG))
    for block in net.blocks:
        main = lrelu(conv(block.conv2, smooth(lrelu(conv(block.conv1, h)), 2), stride=2))
        h = (main + conv(block.shortcut, smooth(h, 1), stride=2)) / math.sqrt(2)
    assert h.shape == (6, 12, 8, 12) and [b.conv2.weight.shape[0] for b in net.blocks] == [8, 12]
    assert [tuple(b.conv1.weight.shape[2:]) for b in net.blocks] == [(3, 3), (3, 3)]
    assert [(tuple(b.conv2.weight.shape[2:]), tuple(b.shortcut.weight.shape[2:])) for b in net.blocks] == [
        ((3, 3), (1, 1))
    ] * 2
    assert all(b.shortcut.bias is None for b in net.blocks) and net.conv_in.weight.shape == (4, 3, 1, 1)
    h = h if group == 1 else deviation(h, group)
    assert net.conv_out.weight.shape == (12, 12 + (group > 1), 3, 3)
    h = F.adaptive_avg_pool2d(lrelu(conv(net.conv_out, h)), 4).flatten(1)
    with float64():
        close(net(IMG), linear(net.head, lrelu(linear(net.hidden, h))))


@pytest.mark.parametrize(("batch", "group"), [(6, 4), (4, 4), (5, 4), (6, 2)])
def test_minibatch_deviation(batch: int, group: int) -> None:
    """Groups of the largest size that divides the batch: 3 of 6, 4 of 4, 1 of 5."""
    x = torch.randn(batch, 3, 2, 5, generator=torch.Generator().manual_seed(0)).double()
    close(MinibatchDeviation(group=group)(x), deviation(x, group))
    assert MinibatchDeviation.mixes_batch and GlobalBatchNorm.mixes_batch


def test_first_weights_have_a_deviation_of_one() -> None:
    """Equalized learning rate: N(0, 1), with biases of 0."""
    with Rng(0).scope("init"):
        net = StyleGANDiscriminator(width=16, widest=64, layers=2, group=1)
    for layer in (m for m in net.modules() if isinstance(m, EqualConv | EqualLinear)):
        if layer.weight.numel() > 2000:
            assert float(layer.weight.std()) == pytest.approx(1.0, rel=0.05)
            assert abs(float(layer.weight.mean())) < 0.1
        assert layer.bias is None or not layer.bias.any()


# -- PatchGAN ----------------------------------------------------------------------------------------------------------


def test_a_patchgan_by_its_layers() -> None:
    """Kernels of 4; strides 2, but 1 in the last two; widths ×2, at most ×8; groups of 16 channels; slope 0.2."""
    net = drawn(PatchGAN(width=16, layers=5, norm="group"))
    layers = list(net.net)
    convs = [m for m in layers if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convs] == [16, 32, 64, 128, 128, 128, 1]
    assert [m.stride[0] for m in convs] == [2, 2, 2, 2, 2, 1, 1]
    assert {(m.kernel_size, m.padding) for m in convs} == {((4, 4), (1, 1))} and all(m.bias is not None for m in convs)
    assert [m.num_groups for m in layers if isinstance(m, nn.GroupNorm)] == [2, 4, 8, 8, 8]
    assert {m.negative_slope for m in layers if isinstance(m, nn.LeakyReLU)} == {0.2}
    assert PatchGAN(width=8, layers=1, norm="group").net[3].num_groups == 1


@pytest.mark.parametrize("norm", ["batch", "group"])
def test_norms_of_a_patchgan_start_near_one(norm: str) -> None:
    with Rng(0).scope("init"):
        net = PatchGAN(width=64, layers=3, norm=norm)
    gains = torch.cat([m.weight for m in net.modules() if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)])
    biases = torch.cat([m.bias for m in net.modules() if isinstance(m, nn.BatchNorm2d | nn.GroupNorm)])
    assert float(gains.mean()) == pytest.approx(1.0, abs=5e-3) and float(gains.std()) == pytest.approx(0.02, rel=0.2)
    assert not biases.any()


# -- DINO --------------------------------------------------------------------------------------------------------------


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    spread = x.var(-1, keepdim=True, correction=0) + 1e-6
    return (x - x.mean(-1, keepdim=True)) / spread.sqrt() * weight + bias


def vit_tokens(img: Tensor, state: dict[str, Tensor], *, heads: int, approximate: str) -> list[Tensor]:
    """The tokens before all blocks and after each, of images that have the ViT's own size."""
    normal = ((img + 1) / 2 - torch.tensor([0.485, 0.456, 0.406]).double().view(3, 1, 1)) / torch.tensor(
        [0.229, 0.224, 0.225]
    ).double().view(3, 1, 1)
    weight, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    patches = normal.unfold(2, 16, 16).unfold(3, 16, 16).permute(0, 2, 3, 1, 4, 5).flatten(1, 2).flatten(2)
    x = torch.cat([state["cls_token"].expand(len(img), -1, -1), patches @ weight.flatten(1).T + bias], 1)
    x = x + state["pos_embed"]
    made, width = [x], x.shape[-1]
    for i in range(3):

        def part(name: str, block: int = i) -> tuple[Tensor, Tensor]:
            return state[f"blocks.{block}.{name}.weight"], state[f"blocks.{block}.{name}.bias"]

        h = F.linear(layer_norm(x, *part("norm1")), *part("attn.qkv"))
        q, k, v = (t.unflatten(-1, (heads, -1)).transpose(1, 2) for t in h.split(width, -1))
        shares = (q @ k.mT / math.sqrt(width // heads)).softmax(-1)
        x = x + F.linear((shares @ v).transpose(1, 2).flatten(2), *part("attn.proj"))
        h = F.gelu(F.linear(layer_norm(x, *part("norm2")), *part("mlp.fc1")), approximate=approximate)
        x = x + F.linear(h, *part("mlp.fc2"))
        made.append(x)
    return made


def head_logits(head: nn.Module, x_BND: Tensor, kernel: int) -> Tensor:
    """Two layers with a circular convolution between, the second one residual, divided by √2."""

    def convolved(layer: nn.Module, x_BDN: Tensor) -> Tensor:
        k = layer.weight.shape[-1]
        x_BDN = torch.cat([x_BDN[..., x_BDN.shape[-1] - k // 2 :], x_BDN, x_BDN[..., : k // 2]], -1)
        return F.conv1d(x_BDN, layer.weight, layer.bias)

    def activated(norm: nn.GroupNorm, x_BDN: Tensor) -> Tensor:
        grouped = x_BDN.unflatten(1, (8, -1))
        mean, spread = grouped.mean((2, 3), keepdim=True), grouped.var((2, 3), keepdim=True, correction=0)
        x_BDN = ((grouped - mean) / (spread + 1e-5).sqrt()).flatten(1, 2)
        return F.leaky_relu(x_BDN * norm.weight[:, None] + norm.bias[:, None], 0.2)

    assert head.second.weight.shape[-1] == kernel and head.first.weight.shape[-1] == 1
    h = activated(head.norm1, convolved(head.first, x_BND.transpose(1, 2)))
    h = (h + activated(head.norm2, convolved(head.second, h))) / math.sqrt(2)
    return convolved(head.out, h)[:, 0]


@pytest.mark.parametrize("gelu", [None, "tanh"])
def test_dinos_discriminator(tmp_path: Path, gelu: str | None) -> None:
    model = dino(tmp_path / "vit.pth", heads=4, taps=[2, -1, 0], kernel=5, gelu=gelu).double().eval()
    state = {name: value.double() for name, value in vit_state().items()}
    img = torch.rand(2, 3, 48, 48, generator=torch.Generator().manual_seed(5)).double() * 2 - 1
    tokens = vit_tokens(img, state, heads=4, approximate=gelu or "none")
    wanted = [tokens[i] for i in (0, 1, 3)]
    with float64():
        for found, expected in zip(model.frozen_forward(img), wanted, strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)  # float32 constants
        logits = torch.cat([head_logits(head, x, 5) for head, x in zip(model.heads, wanted, strict=True)], 1)
        torch.testing.assert_close(model(img), logits, rtol=1e-5, atol=1e-5)


def test_images_and_places_are_brought_to_dinos_size(tmp_path: Path) -> None:
    model = dino(tmp_path / "vit.pth", taps=[-1], size=64).eval()
    first = model.frozen_forward(IMG.float())[0]
    small = F.interpolate(IMG.float(), size=(64, 64), mode="bilinear", antialias=True)
    torch.testing.assert_close(model.frozen_forward(small)[0], first)
    state = vit_state()
    grid = state["pos_embed"][:, 1:].transpose(1, 2).unflatten(2, (3, 3))
    places = F.interpolate(grid, size=(4, 4), mode="bicubic").flatten(2).transpose(1, 2)
    torch.testing.assert_close(model.vit._positions(4, 4), torch.cat([state["pos_embed"][:, :1], places], 1))
    torch.testing.assert_close(model.vit._positions(3, 3), state["pos_embed"])


class Ranks:
    """Threads in the place of processes: ``all_reduce`` waits for all of them and adds."""

    def __init__(self, world: int, patch: pytest.MonkeyPatch):
        self._barrier, self._sum, self._lock, self.world = threading.Barrier(world), None, threading.Lock(), world
        patch.setattr("torch.distributed.is_initialized", lambda: True)
        patch.setattr("torch.distributed.get_world_size", lambda: world)
        patch.setattr("torch.distributed.all_reduce", self._all_reduce)

    def _all_reduce(self, tensor: Tensor) -> None:
        with self._lock:
            self._sum = tensor.detach().clone() if self._sum is None else self._sum + tensor.detach()
        self._barrier.wait(20)
        tensor.copy_(self._sum)
        if self._barrier.wait(20) == 0:
            self._sum = None
        self._barrier.wait(20)

    def run(self, work: Callable[[int], None]) -> None:
        failed: list[BaseException] = []

        def guarded(rank: int) -> None:
            try:
                work(rank)
            except BaseException as error:
                failed.append(error)
                self._barrier.abort()

        threads = [threading.Thread(target=guarded, args=(rank,)) for rank in range(self.world)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if failed:
            raise failed[0]


def test_a_norm_over_two_ranks_is_that_of_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Batches of different sizes, twice, so that running statistics move; and the gradient through both ranks' sums."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(5, 4, 6, generator=draw).double() * torch.arange(1, 5)[:, None] + 1
    weight = torch.randn(5, 4, 6, generator=draw).double()
    reference = drawn(nn.BatchNorm1d(4, eps=1e-6))
    parts = [slice(0, 2), slice(2, 5)]
    norms = [GlobalBatchNorm(4, eps=1e-6).double() for _ in parts]
    for norm in norms:
        norm.load_state_dict(reference.state_dict())
    leaf, leaves = x.clone().requires_grad_(), [x[part].clone().requires_grad_() for part in parts]
    for scale in (1.0, 3.0):
        expected = reference(leaf * scale)
    (expected * weight).sum().backward()
    found: dict[int, Tensor] = {}

    def work(rank: int) -> None:
        for scale in (1.0, 3.0):
            found[rank] = norms[rank](leaves[rank] * scale)
        (found[rank] * weight[parts[rank]]).sum().backward()

    with monkeypatch.context() as patch:
        Ranks(2, patch).run(work)
    for rank, part in enumerate(parts):
        close(found[rank], expected[part])
        close(leaves[rank].grad, leaf.grad[part])
        close(norms[rank].running_mean, reference.running_mean)
        close(norms[rank].running_var, reference.running_var)
    close(norms[0].weight.grad + norms[1].weight.grad, reference.weight.grad)
    evaluated = norms[0].eval()(x)
    close(evaluated, reference.eval()(x))


def test_actnorm_of_two_ranks_is_set_by_both(monkeypatch: pytest.MonkeyPatch) -> None:
    nets = [PatchGAN(width=4, layers=1, norm="actnorm").double().train() for _ in range(3)]
    for net in nets[1:]:
        net.load_state_dict(nets[0].state_dict())
    whole = nets[2]
    whole(IMG)
    with monkeypatch.context() as patch:
        Ranks(2, patch).run(lambda rank: nets[rank](IMG[:2] if rank == 0 else IMG[2:]))
    for mine, theirs in zip(nets[0].state_dict().values(), whole.state_dict().values(), strict=True):
        close(mine.double(), theirs.double())


# -- the blur that fades out -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("left", "radius"), [(1.0, 8), (0.3, 3), (0.12, 1), (2.0, 11)])
def test_a_blur_by_hand(left: float, radius: int) -> None:
    """18 × 12 pixels: σ = 3·left, cut off at ⌊3σ⌋ and at the shorter side less one; edges are mirrored."""
    img = torch.rand(2, 3, 18, 12, generator=torch.Generator().manual_seed(0)).double()
    sigma = 3 * left
    radius = min(math.floor(3 * sigma), 11)
    taps = torch.tensor([2.0 ** -((i / sigma) ** 2) for i in range(-radius, radius + 1)]).double()
    taps = taps / taps.sum()

    def mirrored(i: int, n: int) -> int:
        return -i if i < 0 else (2 * (n - 1) - i if i >= n else i)

    blurred = img
    for dim in (2, 3):
        n = img.shape[dim]
        rows = [
            sum(tap * blurred.select(dim, mirrored(i + j - radius, n)) for j, tap in enumerate(taps)) for i in range(n)
        ]
        blurred = torch.stack(rows, dim)
    torch.testing.assert_close(faded(img, left), blurred, rtol=1e-5, atol=1e-6)
    assert faded(img, 0.1) is img
