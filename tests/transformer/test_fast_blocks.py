"""What blocks compute in a way of their own in bfloat16 on a processor equals the formulas, in few passes."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from varlab.losses.token_loss import token_loss
from varlab.transformer.blocks.mlp import mlp
from varlab.transformer.blocks.modulation import modulated, plus_product
from varlab.transformer.cast_linear import WideLinear


class Calls(TorchDispatchMode):
    """Counts operations by name, and those that make a tensor of ``size`` numbers."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.names: Counter[str] = Counter()
        self.size, self.large = size, Counter[str]()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        self.names[name] += 1
        if isinstance(made, Tensor) and made.numel() == self.size and not any(made is x for x in args):
            self.large[name] += 1
        return made


def test_gelu_of_bfloat16_and_its_gradient_are_rounded_once() -> None:
    x = torch.linspace(-12, 12, 150_001).bfloat16().requires_grad_()
    exact = x.detach().double().requires_grad_()
    gelu = mlp(8, 4.0, "tanh")[1]
    reference = F.gelu(exact, approximate="tanh")
    with Calls(x.numel()) as forward:
        own = gelu(x)
    torch.testing.assert_close(own.double(), reference, rtol=2**-8, atol=1e-6)
    with Calls(x.numel()) as backward:
        (gradient,) = torch.autograd.grad(own, x, torch.ones_like(own))
    (slope,) = torch.autograd.grad(reference, exact, torch.ones_like(exact))
    torch.testing.assert_close(gradient.double(), slope, rtol=2**-8, atol=1e-5)
    assert backward.names["mul"] == 1 and "gelu_backward" not in backward.names
    assert set(forward.large) <= {"empty_like", "view", "detach"}, "no whole tensor but the result and the derivative"


@pytest.mark.parametrize("x", [torch.ones(3), torch.ones(3).bfloat16()])
def test_gelu_is_torchs_elsewhere(x: Tensor) -> None:
    gelu = mlp(8, 4.0, "tanh")[1]
    assert torch.equal(gelu(x), F.gelu(x, approximate="tanh"))
    own, theirs = (kind(x.float().requires_grad_()) for kind in (gelu, nn.GELU(approximate="tanh")))
    assert torch.equal(own, theirs) and type(own.grad_fn) is type(theirs.grad_fn)


@pytest.mark.parametrize(
    ("scale_type", "autocast"), [(torch.float32, True), (torch.bfloat16, True), (torch.float32, False)]
)
def test_a_modulated_norm_with_gradients_is_the_formula_in_one_pass(scale_type: torch.dtype, autocast: bool) -> None:
    draw, shape = torch.Generator().manual_seed(0), (3, 128, 512)
    x = torch.randn(shape, generator=draw).mul(3).add(1).requires_grad_()
    scale, shift = (torch.randn(3, 1, 512, generator=draw).to(scale_type).requires_grad_() for _ in range(2))
    dtype, error = (torch.bfloat16, 2**-8) if autocast else (torch.float32, 1e-5)
    weight = torch.randn(shape, generator=draw).to(dtype)
    exact = [t.detach().double().requires_grad_() for t in (x, scale, shift)]
    reference = F.layer_norm(exact[0], (512,), eps=1e-6) * (1 + exact[1]) + exact[2]
    with Calls(x.numel()) as forward, torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        own = modulated(nn.LayerNorm(512, eps=1e-6, elementwise_affine=False), x, scale, shift)
    assert own.dtype == dtype
    torch.testing.assert_close(own.double(), reference, rtol=error, atol=1e-5)
    with Calls(x.numel()) as backward:
        gradients = torch.autograd.grad(own, (x, scale, shift), weight)
    for mine, theirs in zip(gradients, torch.autograd.grad(reference, exact, weight.double()), strict=True):
        assert (mine.double() - theirs).norm() <= error * theirs.norm()
    assert forward.names["native_layer_norm"] == backward.names["native_layer_norm_backward"] == 3
    assert set(forward.large) | set(backward.large) <= {"empty_like", "detach"}


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_modulated_norm_without_gradients_is_the_formula_in_one_pass(dtype: torch.dtype) -> None:
    draw, norm = torch.Generator().manual_seed(0), nn.LayerNorm(512, eps=1e-6, elementwise_affine=False)
    x = torch.randn(3, 128, 512, generator=draw, dtype=dtype).mul(3).add(1)
    scale, shift = torch.randn(2, 3, 1, 512, generator=draw, dtype=dtype)
    with Calls(x.numel()) as calls:
        own = modulated(norm, x, scale, shift)
    torch.testing.assert_close(own, norm(x) * (1 + scale) + shift, rtol=1e-5, atol=1e-5)
    assert calls.names["native_layer_norm"] == 3 and set(calls.large) == {"empty_like"}


def test_a_modulated_norm_of_short_samples_is_the_formula() -> None:
    norm = nn.LayerNorm(512, eps=1e-6, elementwise_affine=False)
    x, scale, shift = torch.randn(2, 2, 512), torch.randn(2, 1, 512), torch.randn(2, 1, 512)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(modulated(norm, x, scale, shift), norm(x) * (1 + scale) + shift, rtol=0, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("of_samples", [True, False])
def test_a_branch_is_added_in_one_pass_and_so_are_its_gradients(dtype: torch.dtype, of_samples: bool) -> None:
    """of_samples: what it is added to has a number for each sample and channel alone, as the shift of a norm."""
    draw = torch.Generator().manual_seed(0)
    shapes = (3, 1, 16) if of_samples else (3, 64, 16), (3, 64, 16), (3, 1, 16)
    inputs = [torch.randn(shape, generator=draw, dtype=dtype).requires_grad_() for shape in shapes]
    weight = torch.randn(shapes[1], generator=draw, dtype=dtype)
    exact = [t.detach().double().requires_grad_() for t in inputs]
    reference = exact[0] + exact[1] * exact[2]
    with Calls(weight.numel()) as forward:
        own = plus_product(*inputs)
    torch.testing.assert_close(own.double(), reference)
    with Calls(weight.numel()) as backward:
        gradients = torch.autograd.grad(own, inputs, weight)
    for mine, theirs in zip(gradients, torch.autograd.grad(reference, exact, weight.double()), strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-5)
    assert forward.large == {"addcmul": 1} and backward.large == {"mul": 2}


def test_a_branch_of_another_type_is_added_by_the_formula() -> None:
    x, branch, gain = torch.randn(2, 8, 4), torch.randn(2, 8, 4).bfloat16(), torch.randn(2, 1, 4).bfloat16()
    assert torch.equal(plus_product(x, branch, gain), x + branch * gain)


@pytest.mark.usefixtures("bfloat16")
@pytest.mark.parametrize("bias", [True, False])
def test_a_wide_layer_under_autocast_is_torchs_with_the_weight_reordered_once(bias: bool) -> None:
    draw = torch.Generator().manual_seed(0)
    layer, x = WideLinear(32, 48, bias=bias), torch.randn(4, 300, 32, generator=draw).requires_grad_()
    weight = torch.randn(4, 300, 48, generator=draw).bfloat16()
    inputs = [x, *layer.parameters()]
    exact = [t.detach().bfloat16().double().requires_grad_() for t in inputs]
    reference = F.linear(*exact)
    with Calls(0) as forward, torch.autocast("cpu", torch.bfloat16):
        own = layer(x)
    assert own.dtype == torch.bfloat16
    torch.testing.assert_close(own.double(), reference, rtol=2**-8, atol=1e-3)
    with Calls(0) as backward:
        gradients = torch.autograd.grad(own, inputs, weight)
    for mine, theirs in zip(gradients, torch.autograd.grad(reference, exact, weight.double()), strict=True):
        assert mine.dtype == torch.float32
        assert (mine.double() - theirs).norm() <= 3e-3 * theirs.norm()
    assert forward.names["_reorder_linear_weight"] == 1 and "sum" not in backward.names


def test_a_loss_may_overwrite_the_logits_of_a_wide_layer() -> None:
    layer, x = WideLinear(32, 48), torch.randn(2, 600, 32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = token_loss(layer(x).flatten(0, 1), torch.arange(1200) % 48, label_smoothing=0.0)
    loss.backward()
    (plain,) = torch.autograd.grad(F.cross_entropy(layer(x).flatten(0, 1), torch.arange(1200) % 48), [layer.weight])
    assert layer.weight.grad is not None and (layer.weight.grad - plain).norm() <= 1e-2 * plain.norm()


@pytest.mark.usefixtures("bfloat16")
def test_layers_in_float32_and_of_few_rows_are_torchs_own() -> None:
    layer = WideLinear(32, 48)
    for rows, autocast in ((1200, False), (20, True)):
        x = torch.randn(rows, 32)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
