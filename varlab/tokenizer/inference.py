"""Run the tokenizer's networks without training them: few images at a time, and each weight cast once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn
from torch.func import functional_call

from varlab.processor import hardware_precision, many_shapes

# On a CPU, larger tensors leave the caches, and the memory of each is fetched from the system again.
_PIXELS = 2**16


def infer(net: nn.Module, x_BChw: Tensor, *, pixels: int, compile: bool = False) -> Tensor:
    """net(x_BChw). Under autocast, the kernels of convolutions are cast once, not once a layer and part.

    pixels: of one image. On a CPU, parts of the batch that have at most 2^16 pixels (or one image) go through one by one.
    compile: the whole batch at once, by ``torch.compile``.
    """
    if compile:
        with many_shapes():
            return _compiled()(net, x_BChw)
    kind = x_BChw.device.type
    parts = x_BChw.split(max(1, _PIXELS // pixels)) if kind == "cpu" else (x_BChw,)
    kernels: dict[str, Tensor] = {}
    with hardware_precision(x_BChw):
        if torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind):
            dtype = torch.get_autocast_dtype(kind)
            kernels = {name: weight.to(dtype) for name, weight in net.named_parameters() if weight.ndim == 4}
        outputs = [functional_call(net, kernels, (part,)) for part in parts]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


def _output(net: nn.Module, x_BChw: Tensor) -> Tensor:
    output: Tensor = net(x_BChw)
    return output


@cache
def _compiled() -> Callable[[nn.Module, Tensor], Tensor]:
    """``_output`` by ``torch.compile``, for each shape of its inputs."""
    return torch.compile(_output, dynamic=False, fullgraph=True)
