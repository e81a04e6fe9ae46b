"""Randomness as a function, not a stream: every draw depends on (seed, name, id, step) alone.

A draw therefore depends on neither batch size, rank count, worker count, device nor what was drawn before it, and a
resumed run needs no saved generator. The generator is counter-based: SplitMix64's finalizer (Steele, Lea & Flood 2014,
"Fast splittable pseudorandom number generators") over a keyed counter, in wrapping int64 arithmetic, equal on every device.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

_GOLDEN = 0x9E3779B97F4A7C15 - (1 << 64)
_MIX_1 = 0xBF58476D1CE4E5B9 - (1 << 64)
_MIX_2 = 0x94D049BB133111EB - (1 << 64)


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (z >> bits).bitwise_and_((1 << (64 - bits)) - 1)


def _signed(number: int) -> int:
    """A Python integer wrapped to int64, as the tensors wrap."""
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


def _mix(z: Tensor) -> Tensor:
    # in place: most draws are of a few numbers, where the memory of a result costs more than its arithmetic
    z = _shift(z, 30).bitwise_xor_(z).mul_(_MIX_1)
    z = _shift(z, 27).bitwise_xor_(z).mul_(_MIX_2)
    return _shift(z, 31).bitwise_xor_(z)


class Stream:
    """Draws for a batch of ids: row b of every draw depends on ``ids_B[b]`` alone. Drawing twice gives the same numbers."""

    def __init__(self, key: int, ids_B: Tensor, step: int):
        self._key = key
        self.ids_B = ids_B
        self._step = step

    def at(self, step: int) -> Stream:
        """The same stream at another step."""
        return Stream(self._key, self.ids_B, step)

    def only(self, row: int) -> Stream:
        """The stream of one of the ids."""
        return Stream(self._key, self.ids_B[row : row + 1], self._step)

    def _bits(self, n: int) -> Tensor:
        row_B = _mix(_mix(self.ids_B + self._key) + _signed(self._step * _GOLDEN))
        counter_n = torch.arange(1, n + 1, device=self.ids_B.device, dtype=torch.int64)
        return _mix(row_B[:, None] + counter_n * _GOLDEN)

    def uniform(self, *shape: int) -> Tensor:
        """(B, *shape) float32 in [0, 1), 24 bits."""
        bits = _shift(self._bits(math.prod(shape)), 40)
        return bits.to(torch.float32).mul_(2.0**-24).view(-1, *shape)

    def normal(self, *shape: int) -> Tensor:
        """(B, *shape) standard normal float32, by Box and Muller."""
        n = math.prod(shape)
        u = _shift(self._bits(2 * n), 11).to(torch.float64).add_(0.5).mul_(2.0**-53)
        radius, angle = u[:, :n].log().mul_(-2).sqrt_(), u[:, n:].mul(2 * math.pi)
        return (radius * angle.cos()).to(torch.float32).view(-1, *shape)

    def gumbel(self, *shape: int) -> Tensor:
        """(B, *shape) standard Gumbel noise, float64: -log(-log u)."""
        return -torch.log(-torch.log(self.uniform(*shape).double() + 2.0**-25))

    def integers(self, high: int, *shape: int) -> Tensor:
        """(B, *shape) int64 in [0, high)."""
        bits = _shift(self._bits(math.prod(shape)), 11)
        return bits.remainder(high).view(-1, *shape)

    def keep(self, rate: float, *shape: int) -> Tensor:
        """(B, *shape) float32: 0 with probability ``rate``, rounded to 1/65,536, elsewhere 1/(1 - rate): dropout's factors.

        It needs a quarter of the bits of ``uniform``, for what is as large as feature maps.
        """
        n, dropped = math.prod(shape), round(rate * 2**16)
        bits = self._bits(-(-n // 4)).view(torch.int16)[:, :n]  # each is in [-2^15, 2^15)
        return (bits >= dropped - 2**15).to(torch.float32).div_(1 - dropped * 2**-16).view(-1, *shape)

    def permutation(self, n: int) -> Tensor:
        """(B, n) int64, a permutation of range(n) per row."""
        return _shift(self._bits(n), 1).argsort(dim=1, stable=True)


class Rng:
    """All randomness of a run. ``Rng(seed).stream("sample", ids, step)`` is a pure function of its arguments."""

    def __init__(self, seed: int):
        self.seed = int(seed)

    def key(self, name: str) -> int:
        """A signed 64-bit number from (seed, name)."""
        digest = hashlib.blake2b(f"{self.seed}/{name}".encode(), digest_size=8).digest()
        return int.from_bytes(digest, "little", signed=True)

    def stream(self, name: str, ids: int | Tensor = 0, step: int = 0) -> Stream:
        """name: init, order, label_drop, dropout, pkeep, augment, sample, revive, metrics. ids: int64 (B,), or one int."""
        ids_B = ids if isinstance(ids, Tensor) else torch.tensor([ids], dtype=torch.int64)
        return Stream(self.key(name), ids_B, step)

    @contextmanager
    def scope(self, name: str) -> Iterator[None]:
        """For library code that only knows torch's global generator (module init): seeded inside, untouched outside."""
        with torch.random.fork_rng():
            torch.manual_seed(self.key(name) & 0x7FFFFFFFFFFFFFFF)
            yield
