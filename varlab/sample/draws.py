"""Where the randomness of sampling comes from: addressed draws, so that sample i depends on (seed, i) alone."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from varlab.rng import Stream
from varlab.sample.filter import pick

_SMOOTH = 1 << 32  # steps of the stream from here on belong to smooth sampling's noise


class Draws(Protocol):
    """Tokens from filtered logits, and Gumbel noise, at step k. Tests put the official codes' generators here."""

    def pick(self, logits_BlV: Tensor, k: int) -> Tensor: ...

    def gumbel(self, logits_BlV: Tensor, k: int) -> Tensor: ...


class AddressedDraws:
    """Row b depends on the stream's ``ids_B[b]`` and the step alone."""

    def __init__(self, stream: Stream):
        self._stream = stream

    def pick(self, logits_BlV: Tensor, k: int) -> Tensor:
        """idx_Bl, distributed as the softmax of the logits."""
        return pick(logits_BlV, self._stream.at(k).uniform(logits_BlV.shape[1]).to(logits_BlV.device))

    def gumbel(self, logits_BlV: Tensor, k: int) -> Tensor:
        """Standard Gumbel noise of the logits' shape."""
        u_BlV = self._stream.at(_SMOOTH + k).uniform(*logits_BlV.shape[1:]).to(logits_BlV.device)
        return -torch.log(-torch.log(u_BlV.double() + 2.0**-25)).to(logits_BlV.dtype)
