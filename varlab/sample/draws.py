"""The random draws of sampling. They are addressed, so that sample i depends on (seed, i) only."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from varlab.rng import Stream
from varlab.sample.filter import pick

_SMOOTH = 1 << 32  # from this step on, the stream is the noise of smooth sampling


class TokenDraws(Protocol):
    """Draws tokens from filtered logits, and Gumbel noise, at step k. Tests use the generators of official codes."""

    def pick(self, logits_BlV: Tensor, k: int) -> Tensor: ...

    def gumbel(self, logits_BlV: Tensor, k: int) -> Tensor: ...


class AddressedDraws:
    """Draws whose row b depends only on the stream's ``ids_B[b]`` and the step."""

    def __init__(self, stream: Stream):
        self._stream = stream

    def pick(self, logits_BlV: Tensor, k: int) -> Tensor:
        """idx_Bl, distributed as the softmax of the logits."""
        return pick(logits_BlV, self._stream.at(k).uniform(logits_BlV.shape[1]).to(logits_BlV.device))

    def gumbel(self, logits_BlV: Tensor, k: int) -> Tensor:
        """Standard Gumbel noise of the logits' shape."""
        return self._stream.at(_SMOOTH + k).gumbel(*logits_BlV.shape[1:]).to(logits_BlV)
