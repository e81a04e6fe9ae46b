"""How far float32 may lie from the truth, derived in float64: the same bound on every processor.

The truth is the same code in float64. The bound is the farthest that it moves when the inputs of every operation move at
random by √n roundings of float32, n being the length of the operation's sums (Monte Carlo arithmetic, Parker 1997; that n
roundings add up like √n: Higham and Mary 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode

ROUNDING = 2.0**-24  # of one operation in float32, relative
BFLOAT16 = 2.0**-8  # of a product in bfloat16: its inputs and its result are rounded by 2^-9
# The bound is the farthest of so many runs, times a factor. Of many numbers one moves far in every run; a single number
# moves little in both of two runs so often that one bound in sixteen would be too small, with (5, 4) one in a thousand.
RUNS, FACTOR = 2, 3
RUNS_OF_ONE, FACTOR_OF_ONE = 5, 4
CUBIC = (
    12  # the largest term, 8 · 0.75 · 2, of a weight of bicubic interpolation: it is rounded before the terms cancel
)
# Two ways to compute the same numbers in float64: four million roundings, and far less than a mistake would move them.
SAME = 2.0**-30
Measured = Mapping[str, Tensor]
# Operations that round. Others copy, select or compare: a movement would change decisions there, not values.
SUMS = {
    "convolution",
    "native_layer_norm",
    "native_group_norm",
    "native_batch_norm",
    "cumsum",
    "nll_loss",
    "nll_loss2d",
}
SUMS |= {"mm", "addmm", "bmm", "baddbmm", "mean", "sum", "var", "linalg_vector_norm", "mse_loss", "avg_pool2d"}
SUMS |= {
    "_softmax",
    "_log_softmax",
    "_scaled_dot_product_flash_attention_for_cpu",
    "upsample_bicubic2d",
    "_cdist_forward",
}
PRODUCTS = {"convolution", "mm", "addmm", "bmm", "baddbmm", "_scaled_dot_product_flash_attention_for_cpu"}
POINTWISE = {"add", "sub", "rsub", "mul", "div", "exp", "log", "log1p", "sqrt", "rsqrt", "reciprocal", "pow", "lerp"}
POINTWISE |= {"gelu", "silu", "sigmoid", "tanh", "softplus", "sin", "cos", "addcmul", "addcdiv", "polar"}


@cache
def _noise(seed: int) -> Tensor:
    """Numbers in [-1, 1)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(1 << 23, generator=generator, dtype=torch.float64) * 2 - 1


class Rounded(TorchDispatchMode):
    """Inside, operations in float64 are as uncertain as in float32; another seed, another error.

    bfloat16: as under its autocast, where the inputs of products are rounded to it and sums are float32.
    """

    def __init__(self, seed: int, *, bfloat16: bool = False):
        super().__init__()
        self.seed, self._noise, self._used = seed, _noise(seed), 0
        self._bfloat16 = bfloat16

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::").removesuffix("_").removesuffix("_forward")
        plain = name.removesuffix("_backward")
        inputs = [a for a in args if isinstance(a, Tensor) and a.dtype == torch.float64 and not a.is_meta]
        if plain not in SUMS | POINTWISE or not inputs:
            return func(*args, **kwargs)
        if func._schema.is_mutable:
            out = func(*args, **kwargs)
            return out.copy_(self._moved(out, 1))
        n = _terms(name, inputs, lambda: func(*args, **kwargs)) if plain in SUMS else 1
        if self._bfloat16 and plain in PRODUCTS:
            n = max(n, (BFLOAT16 / ROUNDING) ** 2)
        kept = inputs[1:] if name == "native_batch_norm" else []  # its statistics are changed in place
        moved = {id(a): a if any(a is k for k in kept) else self._moved(a, n) for a in inputs}
        return func(*(moved.get(id(a), a) for a in args), **kwargs)

    def _moved(self, x: Tensor, terms: float) -> Tensor:
        """Each element moved by up to √terms roundings. The noise is read in a ring, whose end is left out where x is long."""
        start = self._used if self._used + x.numel() <= len(self._noise) else 0
        self._used = start + x.numel()
        noise = self._noise[start : self._used].view(x.shape)
        return x * (noise * (ROUNDING * terms**0.5)).add_(1)


def _terms(name: str, inputs: list[Tensor], out: Callable[[], Any]) -> float:
    """The length of an operation's sums."""
    if name.endswith("mm"):
        return inputs[-1].shape[-2]
    if name == "convolution":
        return inputs[1][0].numel()
    if name == "convolution_backward":
        grad, _, weight = inputs[:3]
        return max(weight[0].numel(), weight[:, 0].numel(), grad.numel() // grad.shape[1])
    if name in ("native_group_norm", "native_batch_norm"):
        return inputs[0][0, 0].numel() * len(inputs[0])
    if "softmax" in name or "attention" in name:
        return max(t.shape[-1] for t in inputs if t.ndim)
    if "upsample" in name:  # its weights are cubics whose terms reach CUBIC, of coordinates up to the side's length
        return (CUBIC + max(inputs[0].shape[-2:])) ** 2
    outputs = out()
    numels = [o.numel() for o in (outputs if isinstance(outputs, tuple) else (outputs,)) if isinstance(o, Tensor)]
    return max(t.numel() for t in inputs) / min((n for n in numels if n), default=1)


def _drawn_in_float32(draw: Callable) -> Callable:
    return lambda tensor, *args, **kwargs: tensor.copy_(draw(tensor.to(torch.float32), *args, **kwargs))


_uniform, _normal = Tensor.uniform_, Tensor.normal_


def _uniform_in_float64(tensor: Tensor, low: float = 0.0, high: float = 1.0, *, generator: Any = None) -> Tensor:
    """What torch draws in float32; scaled in float64, because float32's rounding depends on the processor's instructions."""
    drawn = _uniform(torch.empty(tensor.shape, dtype=torch.float32), generator=generator)
    return tensor.copy_(drawn.double().mul(high - low).add(low))


def _normal_in_float64(tensor: Tensor, mean: float = 0.0, std: float = 1.0, *, generator: Any = None) -> Tensor:
    """What torch draws in float32, by Box and Muller in blocks of 16, computed in float64 for the same reason."""
    if tensor.numel() < 16:
        return tensor.copy_(_normal(tensor.to(torch.float32), mean, std, generator=generator))

    def blocks(n: int) -> Tensor:
        u = _uniform(torch.empty(n, dtype=torch.float32), generator=generator).double()[: n // 16 * 16].view(-1, 2, 8)
        radius, angle = (1 - u[:, 0]).log().mul(-2).sqrt(), u[:, 1] * (2 * torch.pi)
        return torch.stack([radius * angle.cos(), radius * angle.sin()], 1).flatten()

    drawn = torch.cat([blocks(tensor.numel()), torch.empty(tensor.numel() % 16, dtype=torch.float64)])
    if tensor.numel() % 16:
        drawn[-16:] = blocks(16)
    return tensor.copy_(drawn.mul(std).add(mean).view(tensor.shape))


@contextmanager
def float64() -> Iterator[None]:
    """What the package computes in float32 it computes in float64 here, from the same random numbers."""
    with ExitStack() as stack:
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        torch.set_default_dtype(torch.float64)
        stack.enter_context(patch.object(Tensor, "float", Tensor.double))
        stack.enter_context(patch.object(Tensor, "normal_", _normal_in_float64))
        stack.enter_context(patch.object(Tensor, "uniform_", _uniform_in_float64))
        stack.enter_context(patch.object(Tensor, "exponential_", _drawn_in_float32(Tensor.exponential_)))
        yield


def truth(measure: Callable[[], Measured]) -> tuple[Measured, dict[str, float]]:
    """What ``measure`` gives in float64, and how far from that it may lie in float32."""
    with float64():
        exact, moved = measure(), []
        single = any(value.numel() == 1 for value in exact.values())
        for seed in range(RUNS_OF_ONE if single else RUNS):
            with Rounded(seed):
                moved.append(measure())
        return exact, {
            name: _bound(value, [other[name] for other in moved])
            for name, value in exact.items()
            if value.is_floating_point()
        }


def _bound(value: Tensor, moved: Sequence[Tensor]) -> float:
    runs, factor = (RUNS_OF_ONE, FACTOR_OF_ONE) if value.numel() == 1 else (RUNS, FACTOR)
    return factor * (max(distance(other, value) for other in moved[:runs]) + ROUNDING * size(value))


def precision() -> tuple[torch.dtype, int | None]:
    """What decides how numbers are rounded here: the type, and the seed of ``Rounded``."""
    return torch.get_default_dtype(), getattr(_get_current_dispatch_mode(), "seed", None)


def size(x: Tensor) -> float:
    """The largest value."""
    return float(x.detach()[x.isfinite()].abs().max())


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference; infinite values, which say what is forbidden, stand in the same places."""
    assert torch.equal(a.isfinite(), b.isfinite())
    return size(a.detach().double() - b.detach().double())
