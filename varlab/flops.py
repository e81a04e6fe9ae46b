"""Floating point operations of one image, counted the same way for every order so that runs can be matched.

Linears, convolutions and other matrix products are counted by running the model on the ``meta`` device; attention over the
pairs of slots that ``step_L`` lets see, which no kernel reports. A multiplication with its addition counts as two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.func import functional_call
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from varlab.sample.images import decode_maps
from varlab.tokenizer import VQTokenizer
from varlab.transformer import Transformer
from varlab.types import Slots

TRAINING = 3
"""Forward and backward of a trained part: the backward computes two products for each of the forward's."""

_ATTENTION = ("bmm", "scaled_dot_product")


def forward_flops(
    module: nn.Module,
    *args: Tensor | Slots,
    attention: bool = True,
    method: Callable[..., object] = lambda module, *args: module(*args),
) -> int:
    """Count the operations of ``method(module, *args)`` on meta copies of the module's weights and of the arguments.

    attention: False leaves out the products inside attention, which ``attention_flops`` counts.
    """
    meta = {name: t.detach().to("meta") for name, t in [*module.named_parameters(), *module.named_buffers()]}
    with FlopCounterMode(display=False) as counter, _UncountedShapes(), torch.no_grad():
        weights = {f"module.{name}": t for name, t in meta.items()}
        functional_call(_Call(module, method), weights, tuple(a.to("meta") for a in args))
    counts = counter.get_flop_counts()["Global"]
    return sum(n for op, n in counts.items() if attention or not any(a in str(op) for a in _ATTENTION))


class _UncountedShapes(TorchDispatchMode):
    """Gives norms and resizes on ``meta`` their shapes alone: torch would run their formulas in Python, and counts neither."""

    def __torch_dispatch__(
        self, func: OpOverload, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        if func is torch.ops.aten.upsample_bicubic2d.default:
            return args[0].new_empty(*args[0].shape[:2], *args[1])
        if func is torch.ops.aten.native_group_norm.default:
            return torch.empty_like(args[0]), *args[0].new_empty(2, args[3], args[6])
        return func(*args, **(kwargs or {}))


class _Call(nn.Module):
    """A module whose ``forward`` is any method of another one: functional_call calls nothing else."""

    def __init__(self, module: nn.Module, method: Callable[..., object]):
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *args: Tensor | Slots) -> object:
        return self.method(self.module, *args)


def visible_pairs(step_L: Tensor) -> int:
    """Count the (slot, seen slot) pairs that the mask rule admits."""
    return int((step_L[None, :] <= step_L[:, None]).sum())


def attention_flops(step_L: Tensor, *, width: int, depth: int) -> int:
    """Queries times keys, and weights times values, over the visible pairs, in every layer."""
    return 4 * visible_pairs(step_L) * width * depth


def transformer_flops(transformer: Transformer, slots: Slots) -> int:
    """Forward of one image. slots: those of one sample (B = 1)."""
    label_B = torch.zeros(1, dtype=torch.int64)
    dense = forward_flops(transformer, slots, label_B, attention=False)
    return dense + attention_flops(slots.step_L, width=transformer.width, depth=transformer.depth)


def encode_flops(tokenizer: VQTokenizer, image_size: tuple[int, int]) -> int:
    """Tokenizing one image."""
    return forward_flops(tokenizer, torch.empty(1, 3, *image_size), method=type(tokenizer).encode)


def decode_flops(tokenizer: VQTokenizer) -> int:
    """Decoding one image's f_hat."""
    return forward_flops(tokenizer, tokenizer.blank(1), method=type(tokenizer).decode)


def sampling_flops(transformer: Transformer, slots: Slots, tokenizer: VQTokenizer, *, guided: bool) -> int:
    """Drawing one image: every slot once (twice when guided), then its maps through the quantizer and the decoder.

    slots: those of one sample (B = 1), all steps of it.
    """
    maps = [torch.zeros(1, h * w, dtype=torch.int64) for h, w in tokenizer.scales]
    decode = forward_flops(tokenizer, *maps, method=lambda module, *maps: decode_maps(module, list(maps)))
    return transformer_flops(transformer, slots) * (2 if guided else 1) + decode


def trained_flops(module: nn.Module, image_size: tuple[int, int]) -> int:
    """Forward and backward of one image; a frozen part (``frozen_forward``) goes forward only."""
    image, frozen = torch.empty(1, 3, *image_size), 0
    if hasattr(module, "frozen_forward"):
        frozen = forward_flops(module, image, method=lambda module, img: module.frozen_forward(img))
    return TRAINING * (forward_flops(module, image) - frozen) + frozen
