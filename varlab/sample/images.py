"""Decode token maps to images, and record the frames of a growing image."""

from __future__ import annotations

import torch
from torch import Tensor

from varlab.types import Maps, Order, Tokenizer


@torch.no_grad()
def canvas_of(tokenizer: Tokenizer, maps: Maps) -> Tensor:
    """Token maps → f_hat_BChw, the sum of their codes over all scales."""
    f_hat_BChw = tokenizer.blank(len(maps[0]))
    for k, idx_Bl in enumerate(maps):
        f_hat_BChw = tokenizer.accumulate(f_hat_BChw, k, tokenizer.embed(idx_Bl))
    return f_hat_BChw


@torch.no_grad()
def decode_maps(tokenizer: Tokenizer, maps: Maps, *, compile: bool = False) -> Tensor:
    """Token maps → img_B3HW in [-1, 1]. compile: see ``VQTokenizer.decode``."""
    canvas_BChw = canvas_of(tokenizer, maps)
    return tokenizer.decode(canvas_BChw, compile=True) if compile else tokenizer.decode(canvas_BChw)


class Growth:
    """A ``watch`` for the sampler: decodes the canvas at about ``frames`` evenly spaced steps, with the last one."""

    def __init__(self, *, order: Order, tokenizer: Tokenizer, frames: int):
        self._order, self._tokenizer = order, tokenizer
        steps = len(order.steps)
        self.steps = sorted({round((i + 1) * steps / frames) - 1 for i in range(frames)} - {-1}) if steps else []
        self._frames: list[Tensor] = []

    def __call__(self, k: int, state: object) -> None:
        if k in self.steps:
            with torch.no_grad():
                self._frames.append(self._tokenizer.decode(self._order.canvas(state, self._tokenizer)))

    def images(self) -> Tensor:
        """(B, frames, 3, H, W) in [-1, 1]."""
        return torch.stack(self._frames, 1)
