"""The walk of training through its samples: a pure function of the seed.

Training sees one endless sequence of positions p = 0, 1, 2, …; epoch p // n visits all n samples once in its own order.
Global batch i is the positions [i·B, (i+1)·B), and rank r of R takes the r-th contiguous share of it. So the same
global batches come on any number of ranks and workers, a batch may span epochs, and the whole state is one integer: the
images consumed. (MosaicML Streaming calls this elastic determinism.)
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varlab.data.read.shuffle import Shuffle
from varlab.rng import Rng

__all__ = ["ATTEMPTS", "Walk"]

ATTEMPTS = 64  # at finding a sample that is whole


class Walk:
    """Which sample stands at which position of the endless stream, seen in which way, and which one stands in for it if it
    is bad: functions of (seed, position) alone.

    shard_N: in which shard each sample lies. views: ways in which each image is seen, see ``TrainStream``; 0 where they are
    not counted. open_shards: see ``Shuffle``.
    """

    def __init__(self, *, seed: int, shard_N: NDArray[np.integer], views: int = 0, open_shards: int | None = None):
        self._rng, self._views = Rng(seed), views
        self.shuffle = Shuffle(seed=seed, shard_N=shard_N, open_shards=open_shards)
        self._orders: dict[int, Tensor] = {}

    def __len__(self) -> int:
        return len(self.shuffle)

    def locate(self, position_B: Tensor) -> Tensor:
        """Which sample stands at each position."""
        n = len(self)
        epoch_B, place_B = position_B // n, position_B % n
        index_B = torch.empty_like(position_B)
        for epoch in torch.unique(epoch_B).tolist():
            here_B = epoch_B == epoch
            index_B[here_B] = self._order(epoch)[place_B[here_B]]
        return index_B

    def view(self, position_B: Tensor) -> Tensor:
        """In which of its ways the sample at each position is seen."""
        return self._rng.stream("view", position_B).integers(max(self._views, 1)).view(-1)

    def substitute(self, position_B: Tensor, attempt: int) -> Tensor:
        """Which sample stands in, at the first, second, … attempt at finding one that is whole."""
        return self._rng.stream("substitute", position_B, attempt).integers(len(self)).view(-1)

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}  # a batch may span two epochs
            self._orders[epoch] = self.shuffle.order(epoch)
        return self._orders[epoch]
