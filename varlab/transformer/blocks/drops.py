"""What training drops of a block's branches, addressed per sample."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

from varlab.rng import Stream


class Drop:
    """Stochastic depth (Huang et al. 2016): drops a sample's whole branch, in training only, addressed per sample."""

    def __init__(self, rate: float):
        self.rate = rate

    def draw(self, rng: Stream | None, step: int) -> list[Kept]:
        """What stays of a branch: all of it without ``rng``."""
        return [] if rng is None or self.rate == 0 else [Kept.of(rng.at(step).uniform(1)[:, :, None], self.rate)]


@dataclass(frozen=True)
class Kept:
    """A branch times ``keep_BLD``, (B, 1, 1) or (B, L, D), divided by ``share``."""

    keep_BLD: Tensor
    share: float

    @classmethod
    def of(cls, u_BLD: Tensor, rate: float) -> Kept:
        """By uniform numbers: what they drop at this rate, and the share that stays."""
        return cls(u_BLD >= rate, 1 - rate)

    def merged(self) -> Kept:
        """The same as one factor in float32, for compiled functions, which are made again for another number."""
        return Kept(self.keep_BLD / self.share, 1.0)


def kept(branch_BLD: Tensor, drawn: Sequence[Kept]) -> Tensor:
    """What stays of a branch after one drop after another."""
    for one in drawn:
        keep_BLD = one.keep_BLD if one.keep_BLD.is_floating_point() else one.keep_BLD.to(branch_BLD.dtype)
        branch_BLD = branch_BLD * keep_BLD / one.share
    return branch_BLD
