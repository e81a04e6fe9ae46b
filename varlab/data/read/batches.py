"""Which positions a rank takes: the same global batches on any number of ranks, and as many of them on each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

from varlab.errors import VarlabError

__all__ = ["Chunks", "EvalBatches", "TrainBatches"]


class TrainBatches(Sampler[Sequence[int]]):
    """A rank's share of each global batch from position ``start`` until at least ``stop``, in whole batches.

    Raises:
        VarlabError: a batch that the ranks cannot share equally, or a start in the middle of a batch.
    """

    def __init__(self, *, start: int, stop: int, batch: int, rank: int, world: int):
        _check_share(batch, world)
        if start % batch:
            raise VarlabError(f"Position {start} is inside a batch of {batch}: go on with the first batch size.")
        self._starts = range(start, stop, batch)
        self._share, self._rank = batch // world, rank

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Sequence[int]]:
        for first in self._starts:
            mine = first + self._rank * self._share
            yield range(mine, mine + self._share)


class EvalBatches(Sampler[Sequence[int]]):
    """A rank's share of global batches over ``n`` samples: each exactly once over all ranks, batches of equal number
    and shape on every rank. The last batch shrinks to what is left, rounded up to the ranks: at most ``world - 1``
    positions lie past the end.

    Raises:
        VarlabError: a batch that the ranks cannot share equally.
    """

    def __init__(self, *, n: int, batch: int, rank: int, world: int):
        _check_share(batch, world)
        self._total = -(-n // world) * world
        self._batch, self._rank, self._world = batch, rank, world

    def __len__(self) -> int:
        return -(-self._total // self._batch)

    def __iter__(self) -> Iterator[Sequence[int]]:
        for first in range(0, self._total, self._batch):
            share = min(self._batch, self._total - first) // self._world
            yield range(first + self._rank * share, first + (self._rank + 1) * share)


class Chunks(Sampler[Sequence[int]]):
    """A range in pieces of at most ``size``."""

    def __init__(self, first: int, last: int, size: int):
        self._starts, self._last, self._size = range(first, last, size), last, size

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Sequence[int]]:
        for start in self._starts:
            yield range(start, min(start + self._size, self._last))


def _check_share(batch: int, world: int) -> None:
    if batch < 1 or batch % world:
        raise VarlabError(f"A global batch of {batch} cannot be shared by {world} ranks: make it a multiple of that.")
