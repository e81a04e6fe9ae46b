"""Floating point operations of one image, counted the same way for every order so that runs can be matched.

Linears, convolutions and other matrix products are counted by running the model on the ``meta`` device; attention over the
pairs of slots that ``step_L`` lets see, which no kernel reports. A multiplication with its addition counts as two.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from varlab.types import Slots

TRAINING = 3
"""Forward and backward of a trained part: the backward computes two products for each of the forward's."""

_ATTENTION = ("bmm", "scaled_dot_product")


def forward_flops(
    module: nn.Module, *args: Any, attention: bool = True, method: Callable[..., Any] | None = None
) -> int:
    """Operations of one call of ``module`` (or of ``method(module, *args)``) on meta copies of its weights and arguments.

    attention: False leaves out the products inside attention, which are then counted by ``attention_flops``.
    """
    meta = {name: t.detach().to("meta") for name, t in [*module.named_parameters(), *module.named_buffers()]}
    moved = tuple(a.to("meta") if isinstance(a, (Tensor, Slots)) else a for a in args)
    call = _Call(module, method or (lambda m, *a: m(*a)))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        functional_call(call, {f"module.{name}": t for name, t in meta.items()}, moved)
    counts = counter.get_flop_counts()["Global"]
    return sum(n for op, n in counts.items() if attention or not any(a in str(op) for a in _ATTENTION))


class _Call(nn.Module):
    """Makes any method of a module callable as ``forward``, which is all that functional_call knows."""

    def __init__(self, module: nn.Module, method: Callable[..., Any]):
        super().__init__()
        self.module, self.method = module, method

    def forward(self, *args: Any) -> Any:
        return self.method(self.module, *args)


def visible_pairs(step_L: Tensor) -> int:
    """How many (slot, seen slot) pairs the mask rule admits."""
    return int((step_L[None, :] <= step_L[:, None]).sum())


def attention_flops(step_L: Tensor, *, width: int, depth: int) -> int:
    """Queries times keys, and weights times values, over the visible pairs, in every layer."""
    return 4 * visible_pairs(step_L) * width * depth


def transformer_flops(transformer: nn.Module, slots: Slots, *, width: int, depth: int) -> int:
    """Forward of one image. slots: those of one sample (B = 1)."""
    label_B = torch.zeros(1, dtype=torch.int64)
    dense = forward_flops(transformer, slots, label_B, attention=False)
    return dense + attention_flops(slots.step_L, width=width, depth=depth)


def encode_flops(tokenizer: nn.Module, image_size: tuple[int, int]) -> int:
    """Tokenizing one image."""
    return forward_flops(tokenizer, torch.empty(1, 3, *image_size), method=lambda m, img: m.encode(img))


def decode_flops(tokenizer: Any) -> int:
    """Decoding one image's f_hat."""
    return forward_flops(tokenizer, tokenizer.blank(1), method=lambda m, f_hat: m.decode(f_hat))


def sampling_flops(transformer: Any, slots: Slots, tokenizer: Any, *, guided: bool) -> int:
    """Drawing one image: every slot once (twice when guided), then its maps through the quantizer and the decoder.

    slots: those of one sample (B = 1), all steps of it.
    """
    forward = transformer_flops(transformer, slots, width=transformer.width, depth=transformer.depth)
    maps = [torch.zeros(1, h * w, dtype=torch.int64) for h, w in tokenizer.scales]

    def decode(module: Any, *maps: Tensor) -> Tensor:
        f_hat = module.blank(1)
        for k, idx_Bl in enumerate(maps):
            f_hat = module.accumulate(f_hat, k, module.embed(idx_Bl))
        return module.decode(f_hat)

    return forward * (2 if guided else 1) + forward_flops(tokenizer, *maps, method=decode)


def autoencoder_flops(tokenizer: nn.Module, image_size: tuple[int, int]) -> int:
    """One reconstruction."""
    return forward_flops(tokenizer, torch.empty(1, 3, *image_size))
