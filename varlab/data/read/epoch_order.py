"""The order of training samples: a function of the seed, the same on any number of ranks and workers.

Training reads one endless sequence of positions p = 0, 1, 2, …; epoch p // n visits all n samples once, in an order of its
own. Global batch i holds the positions [i·B, (i+1)·B), and rank r of R reads the r-th contiguous share of it. So the global
batches don't depend on ranks and workers, a batch may span epochs, and the only state is one integer: the images consumed.
(MosaicML Streaming calls this elastic determinism.)
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varlab.errors import VarlabError
from varlab.rng import Rng

__all__ = ["EpochOrder", "quality"]

_ATTEMPTS = 64  # samples to try in place of a bad one


class EpochOrder:
    """Which sample is read at which position, in which of its views, and which one replaces it if it is bad.

    shard_N: the shard of each sample. views: fixed views of each image, see ``TrainStream``; 0 where they are not numbered.
    open_shards: the shards of an epoch, in random order, form groups of this size, and samples are shuffled within a group.
    Then only two groups are needed at a time, which suits a bounded cache of remote shards. None shuffles all samples.
    """

    def __init__(self, *, seed: int, shard_N: NDArray[np.integer], views: int = 0, open_shards: int | None = None):
        if open_shards is not None and open_shards < 1:
            raise VarlabError(f"data.open_shards is {open_shards}, but must be at least 1: set null to mix all shards.")
        self._rng, self._views = Rng(seed), views
        self._shard_N = np.asarray(shard_N, dtype=np.int64)
        self._shards = int(self._shard_N.max()) + 1 if len(self._shard_N) else 0
        self._group_size = None if open_shards is None or open_shards >= self._shards else open_shards
        self._recent: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self._shard_N)

    def epoch(self, epoch: int) -> Tensor:
        """The sample numbers of an epoch in order, int64."""
        shuffled_N = self._rng.stream("shuffle", ids=epoch).permutation(len(self))[0]
        if self._group_size is None:
            return shuffled_N
        group_N = self._groups(epoch, self._group_size)[self._shard_N[shuffled_N.numpy()]]
        return shuffled_N[torch.from_numpy(np.argsort(group_N, kind="stable"))]

    def locate(self, position_B: Tensor) -> Tensor:
        """The number of the sample at each position."""
        n = len(self)
        epoch_B, place_B = position_B // n, position_B % n
        index_B = torch.empty_like(position_B)
        for epoch in torch.unique(epoch_B).tolist():
            here_B = epoch_B == epoch
            index_B[here_B] = self._remembered(epoch)[place_B[here_B]]
        return index_B

    def view(self, position_B: Tensor) -> Tensor:
        """The number of the view at each position."""
        return self._rng.stream("view", position_B).integers(max(self._views, 1)).view(-1)

    def substitutes(self, position_B: Tensor, valid_B: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Give rows that are not valid and samples to read for them, until the caller has set ``valid_B`` everywhere.

        Raises:
            VarlabError: too many attempts have failed.
        """
        for attempt in range(1, _ATTEMPTS + 1):
            row_b = (~valid_B).nonzero()[:, 0]
            if not len(row_b):
                return
            yield row_b, self._rng.stream("substitute", position_B[row_b], attempt).integers(len(self)).view(-1)
        if not bool(valid_B.all()):
            raise VarlabError(f"{_ATTEMPTS} random samples in a row are bad: run `varlab index DIR check=true`.")

    def shards_near(self, position: int) -> NDArray[np.int64] | None:
        """The shards that are needed at a position, then the next group's; None where all shards are mixed."""
        if self._group_size is None:
            return None
        epoch, place = divmod(position, len(self))
        group_S = self._groups(epoch, self._group_size)
        ends = np.cumsum(np.bincount(group_S[self._shard_N]))
        now = int(np.searchsorted(ends, place, side="right"))
        following_S, following = group_S, now + 1
        if following == len(ends):
            following_S, following = self._groups(epoch + 1, self._group_size), 0
        return np.concatenate([np.flatnonzero(group_S == now), np.flatnonzero(following_S == following)])

    def _remembered(self, epoch: int) -> Tensor:
        if epoch not in self._recent:
            self._recent = {e: o for e, o in self._recent.items() if e == epoch - 1}  # a batch may span two epochs
            self._recent[epoch] = self.epoch(epoch)
        return self._recent[epoch]

    def _groups(self, epoch: int, size: int) -> NDArray[np.int64]:
        """The number of each shard's group in an epoch."""
        turn_S = self._rng.stream("shuffle/shards", ids=epoch).permutation(self._shards)[0].numpy()
        group_S = np.empty(self._shards, dtype=np.int64)
        group_S[turn_S] = np.arange(self._shards) // size
        return group_S


def quality(
    order: EpochOrder, *, shard_N: NDArray[np.integer], label_N: NDArray[np.integer], batch: int
) -> dict[str, float]:
    """Measure how well epochs are shuffled. A shuffle of all samples gives shards 1, labels 1, memory about 0.

    shards: mean number of different shards in a batch, relative to random draws. labels: spread of the class shares over
    batches (mean squared deviation from the whole set's shares), relative to random draws; above 1 means clusters.
    memory: correlation between a sample's place in one epoch and in the next.
    """
    first, second = (order.epoch(epoch).numpy() for epoch in (0, 1))
    n, random = len(order), np.random.default_rng(0).permutation(len(order))
    place: NDArray[np.float64] = np.empty((2, n))
    place[0, first], place[1, second] = np.arange(n), np.arange(n)
    return {
        "shards": _distinct(shard_N[first], batch) / _distinct(shard_N[random], batch),
        "labels": _spread(label_N[first], batch) / max(_spread(label_N[random], batch), 1e-12),
        "memory": float(np.asarray(np.corrcoef(place))[0, 1]),
    }


def _distinct(value_N: NDArray[np.integer], batch: int) -> float:
    whole = value_N[: len(value_N) // batch * batch].reshape(-1, batch)
    return float(np.mean([len(np.unique(row)) for row in whole]))


def _spread(label_N: NDArray[np.integer], batch: int) -> float:
    shares = np.bincount(label_N) / len(label_N)
    whole = label_N[: len(label_N) // batch * batch].reshape(-1, batch)
    return float(np.mean([((np.bincount(row, minlength=len(shares)) / batch - shares) ** 2).sum() for row in whole]))
