"""The fast paths of the tokenizer's networks equal the plain ones, and cast and keep no more than they need."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from varlab.rng import Rng
from varlab.tokenizer import VQTokenizer, inference
from varlab.tokenizer.inference import infer
from varlab.tokenizer.layers import Upsample, group_norm, norm_silu


def small_tokenizer(dropout: float | None = None) -> VQTokenizer:
    with Rng(0).scope("init"):
        return VQTokenizer(
            channels=4,
            channel_mult=[1, 1, 2, 2, 2],
            groups=2,
            code_dim=4,
            vocab_size=64,
            code_init=64.0,
            dropout=dropout,
        ).eval()


def images(batch: int) -> Tensor:
    """256 pixels: two of them are too large to go through at a time."""
    return Rng(0).stream("images", torch.arange(batch)).uniform(3, 256, 256) * 2 - 1


class KernelCasts(TorchDispatchMode):
    """Counts the casts of float32 kernels to bf16."""

    def __init__(self, module: nn.Module):
        super().__init__()
        self.kernels = {p.data_ptr() for p in module.parameters() if p.ndim == 4}
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += func is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.kernels
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def test_images_go_through_in_parts_and_tokens_stay_equal() -> None:
    tokenizer, img_B3HW = small_tokenizer(), images(3)
    plain = tokenizer.quantizer.encode(tokenizer.latents(img_B3HW))
    assert all(torch.equal(a, b) for a, b in zip(tokenizer.encode(img_B3HW), plain, strict=True))
    f_hat_BChw = tokenizer.latents(img_B3HW)
    rec_B3HW = tokenizer.decoder(tokenizer.post_quant_conv(f_hat_BChw)).clamp(-1, 1)
    assert (tokenizer.decode(f_hat_BChw) - rec_B3HW).norm() <= 1e-4 * rec_B3HW.norm()
    with torch.autocast("cpu", torch.bfloat16):
        # random weights amplify roundings, so the measure is torch's own autocast of the whole batch
        plain_B3HW = tokenizer.decoder(tokenizer.post_quant_conv(f_hat_BChw)).clamp(-1, 1)
        error, plain_error = (float((rec - rec_B3HW).norm()) for rec in (tokenizer.decode(f_hat_BChw), plain_B3HW))
        assert error <= 1.1 * plain_error
        found = torch.cat(tokenizer.encode(img_B3HW), 1)
        autocast = torch.cat(tokenizer.quantizer.encode(tokenizer.latents(img_B3HW)), 1)
    exact = torch.cat(plain, 1)
    assert (found == exact).float().mean() >= (autocast == exact).float().mean(), "the last layers are float32"


@torch.no_grad()
@pytest.mark.parametrize(("batch", "size", "calls"), [(3, 256, 3), (5, 128, 2), (2, 512, 2)])
def test_parts_have_as_many_pixels_as_256_by_256(batch: int, size: int, calls: int) -> None:
    """Four images of 128 pixels at a time, or one of more, in the encoder and in the decoder."""
    tokenizer, seen = small_tokenizer(), []
    for network in (tokenizer.encoder.conv_in, tokenizer.decoder.conv_in):
        network.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    f_hat = torch.zeros(batch, 4, size // 16, size // 16)
    infer(tokenizer.encoder, torch.zeros(batch, 3, size, size), pixels=size * size)
    tokenizer.decode(f_hat)
    assert len(seen) == 2 * calls and sum(seen) == 2 * batch and seen[:calls] == seen[calls:]


@pytest.mark.usefixtures("bfloat16")
@torch.no_grad()
@pytest.mark.parametrize("batch", [1, 3])
def test_each_kernel_is_cast_once_a_call(batch: int) -> None:
    tokenizer, img_B3HW = small_tokenizer().requires_grad_(False), images(batch)
    kernels = sum(p.ndim == 4 for p in tokenizer.encoder.parameters())
    with KernelCasts(tokenizer) as casts, torch.autocast("cpu", torch.bfloat16):
        tokenizer.encode(img_B3HW)
    assert casts.count == kernels


@pytest.mark.parametrize("dropout", [None, 0.1])
def test_convolutions_see_channels_last_and_weights_keep_their_format(dropout: float | None) -> None:
    tokenizer, seen = small_tokenizer(dropout), []

    def note(module: nn.Module, args: tuple[Tensor]) -> None:
        seen.append(args[0].is_contiguous(memory_format=torch.channels_last))

    for network in (tokenizer.encoder, tokenizer.decoder):
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_pre_hook(note)
    rec_B3HW, quantized = tokenizer(images(1), Rng(0).stream("dropout") if dropout else None)
    (rec_B3HW.square().mean() + quantized.vq_loss).backward()
    assert len(seen) > 40 and all(seen)
    assert all(p.is_contiguous() and p.grad is not None and p.grad.is_contiguous() for p in tokenizer.parameters())


def test_small_images_keep_the_plain_layout_in_which_they_are_faster() -> None:
    tokenizer, seen = small_tokenizer(), []
    for module in (m for m in tokenizer.modules() if isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3)):
        module.register_forward_pre_hook(lambda module, args: seen.append(args[0].is_contiguous()))
    small_BZhw = tokenizer.encoder(images(1)[:, :, :32, :32])
    tokenizer.decoder(torch.zeros_like(small_BZhw))
    assert len(seen) > 40 and all(seen)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_norm_and_silu_equal_torch_and_keep_only_their_input(dtype: torch.dtype) -> None:
    """In bf16 they may err twice as far as torch, which rounds less often in its backward pass."""
    norm = group_norm(16, 4).double()
    draw = Rng(0).stream("x", torch.arange(2))
    nn.init.uniform_(norm.weight, 0.5, 2.0)
    x_BChw = (draw.uniform(16, 8, 8) * 3 + 1).double().to(memory_format=torch.channels_last)
    grad_BChw = draw.at(1).uniform(16, 8, 8).double()

    def gradients(function: Any, dtype: torch.dtype) -> list[Tensor]:
        x = x_BChw.to(dtype).requires_grad_()
        return [t.double() for t in torch.autograd.grad(function(x), [x, *norm.parameters()], grad_BChw.to(dtype))]

    expected = gradients(lambda x: F.silu(norm(x)), torch.float64)
    norm = norm.to(torch.float64 if dtype == torch.float64 else torch.float32)
    plain = gradients(lambda x: F.silu(norm(x)), dtype)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        found = gradients(lambda x: norm_silu(norm, x), dtype)
    for mine, torchs, exact in zip(found, plain, expected, strict=True):
        assert (mine - exact).norm() <= 2 * (torchs - exact).norm() + 1e-12 * exact.norm()
    assert sum(n == x_BChw.numel() for n in kept) == 1


def test_doubling_then_convolving_is_one_product_of_the_small_grid() -> None:
    layer, x_BChw = Upsample(channels=6).double(), Rng(0).stream("x", torch.arange(2)).uniform(6, 5, 3).double()

    def plain(x: Tensor) -> Tensor:
        return F.conv2d(
            F.interpolate(x, scale_factor=2.0, mode="nearest"), layer.conv.weight, layer.conv.bias, padding=1
        )

    def run(function: Any) -> tuple[int, list[Tensor]]:
        x = x_BChw.clone().requires_grad_()
        with FlopCounterMode(display=False) as flops:
            y = function(x)
        return flops.get_total_flops(), [y, *torch.autograd.grad(y.square().sum(), [x, *layer.parameters()])]

    kernel = 2 * layer.conv.weight.numel() * 16
    (plain_flops, expected), (found_flops, found) = run(plain), run(layer)
    assert (found_flops - kernel) * 9 == plain_flops * 4
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("change", [lambda x: x[:, ::2], lambda x: x.transpose(2, 3), lambda x: x[:, :8, ::2]])
def test_norm_and_silu_take_any_layout(change: Callable[[Tensor], Tensor]) -> None:
    norm, x_BChw = group_norm(8, 4).double(), torch.randn(2, 16, 8, 8, dtype=torch.float64)
    x_BChw = change(x_BChw if change(x_BChw).shape[1] == 8 else x_BChw[:, :8]).requires_grad_()
    assert torch.equal(norm_silu(norm, x_BChw), F.silu(norm(x_BChw)))


def test_a_network_may_be_compiled_for_many_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """For more than the eight that torch allows by default."""
    inference._compiled.cache_clear()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    net = nn.Conv2d(3, 2, 3)
    for batch in range(1, 12):
        x_BChw = torch.randn(batch, 3, 8, 8)
        assert torch.equal(infer(net, x_BChw, pixels=64, compile=True), net(x_BChw))
    inference._compiled.cache_clear()
