"""The order of an epoch: a pure function of the seed, as well mixed as the number of shards open at once allows."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varlab.errors import VarlabError
from varlab.rng import Rng

__all__ = ["Shuffle", "quality"]


class Shuffle:
    """Each epoch visits every sample once. ``order(epoch)`` is a function of (seed, epoch) and the shards' sizes alone.

    shard_N: in which shard each sample lies. open_shards: the shards of an epoch, in random order, are cut into groups of so
    many, and samples are mixed within a group: only those shards are needed at a time, which a bounded cache of remote
    shards wants. None mixes all samples with all.
    """

    def __init__(self, *, seed: int, shard_N: NDArray[np.integer], open_shards: int | None):
        if open_shards is not None and open_shards < 1:
            raise VarlabError(
                f"data.open_shards is {open_shards}, but at least one shard must be open: or null for all."
            )
        self._rng, self._shard_N, self._open = Rng(seed), np.asarray(shard_N, dtype=np.int64), open_shards
        self._shards = int(self._shard_N.max()) + 1 if len(self._shard_N) else 0

    def __len__(self) -> int:
        return len(self._shard_N)

    def order(self, epoch: int) -> Tensor:
        """int64, a permutation of the samples' numbers."""
        mixed_N = self._rng.stream("shuffle", ids=epoch).permutation(len(self))[0]
        if self._open is None or self._open >= self._shards:
            return mixed_N
        group_N = self._groups(epoch)[self._shard_N[mixed_N.numpy()]]
        return mixed_N[torch.from_numpy(np.argsort(group_N, kind="stable"))]

    def wanted(self, epoch: int, place: int) -> NDArray[np.int64] | None:
        """The shards that are needed at this place of the epoch, and then the next group's; None where all are."""
        if self._open is None or self._open >= self._shards:
            return None
        group_S = self._groups(epoch)
        ends = np.cumsum(np.bincount(group_S[self._shard_N]))
        now = int(np.searchsorted(ends, place, side="right"))
        wanted = [np.flatnonzero(group_S == group) for group in (now, now + 1)]
        if now + 1 == len(ends):
            following = self._groups(epoch + 1)
            wanted[1] = np.flatnonzero(following == 0)
        return np.concatenate(wanted)

    def _groups(self, epoch: int) -> NDArray[np.int64]:
        """Of each shard, the number of its group in this epoch."""
        assert self._open is not None
        turn_S = self._rng.stream("shuffle/shards", ids=epoch).permutation(self._shards)[0].numpy()
        group_S = np.empty(self._shards, dtype=np.int64)
        group_S[turn_S] = np.arange(self._shards) // self._open
        return group_S


def quality(
    shuffle: Shuffle, *, shard_N: NDArray[np.integer], label_N: NDArray[np.integer], batch: int
) -> dict[str, float]:
    """How well epochs are mixed; all three are 1, 1 and about 0 for a shuffle of all samples with all.

    shards: mean distinct shards in a batch, over what drawing at random gives. labels: spread of the classes' shares over
    batches (mean squared deviation from the set's shares), over what drawing at random gives: above 1 is clumped.
    memory: correlation between a sample's place in one epoch and in the next.
    """
    first, second = (shuffle.order(epoch).numpy() for epoch in (0, 1))
    n, drawn = len(shuffle), np.random.default_rng(0).permutation(len(shuffle))
    place: NDArray[np.float64] = np.empty((2, n))
    place[0, first], place[1, second] = np.arange(n), np.arange(n)
    return {
        "shards": _distinct(shard_N[first], batch) / _distinct(shard_N[drawn], batch),
        "labels": _spread(label_N[first], batch) / max(_spread(label_N[drawn], batch), 1e-12),
        "memory": float(np.asarray(np.corrcoef(place))[0, 1]),
    }


def _distinct(value_N: NDArray[np.integer], batch: int) -> float:
    whole = value_N[: len(value_N) // batch * batch].reshape(-1, batch)
    return float(np.mean([len(np.unique(row)) for row in whole]))


def _spread(label_N: NDArray[np.integer], batch: int) -> float:
    shares = np.bincount(label_N) / len(label_N)
    whole = label_N[: len(label_N) // batch * batch].reshape(-1, batch)
    return float(np.mean([((np.bincount(row, minlength=len(shares)) / batch - shares) ** 2).sum() for row in whole]))
