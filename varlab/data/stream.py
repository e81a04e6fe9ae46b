"""The exact stream: which sample stands at which position, as a pure function of the seed.

Training sees one endless sequence of positions p = 0, 1, 2, …; epoch p // n visits all n samples once in its own order.
Global batch i is the positions [i·B, (i+1)·B), and rank r of R takes the r-th contiguous share of it. So the same
global batches come on any number of ranks and workers, a batch may span epochs, and the whole state is one integer: the
images consumed. (MosaicML Streaming calls this elastic determinism.)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, Sampler

from varlab.data.reader import ShardReader
from varlab.errors import VarlabError
from varlab.rng import Rng
from varlab.types import Batch

__all__ = ["Augment", "EvalBatches", "EvalSplit", "TrainBatches", "TrainStream", "order"]


def order(seed: int, epoch: int, n: int) -> Tensor:
    """The order of an epoch: int64, a permutation of range(n), a function of (seed, epoch) alone."""
    return Rng(seed).stream("shuffle", ids=epoch).permutation(n)[0]


class Augment:
    """Random flip, crop and noise of a batch; sample p's are a function of (seed, p) alone.

    Args:
        flip: mirror left and right with probability 1/2.
        crop: enlarge by this ratio (bilinear), then crop the old size at a random place (VAR: 1.125); 1 does nothing.
        noise: standard deviation of Gaussian noise added to each pixel, alike in its three colours, in steps of 1/255
            (undoes the coarse quantization of scanned images); 0 does nothing.
    """

    def __init__(self, *, flip: bool, crop: float, noise: float):
        if crop < 1:
            raise VarlabError(f"augment.crop is {crop}, but it enlarges before it crops: set at least 1.")
        if noise < 0:
            raise VarlabError(f"augment.noise is {noise}, but it is a standard deviation: set at least 0.")
        self._flip, self._crop, self._noise = flip, crop, noise

    def __call__(self, img_u8_B3HW: Tensor, position_B: Tensor, rng: Rng) -> Tensor:
        """uint8 in, uint8 of the same shape out."""
        u_B3 = rng.stream("augment", ids=position_B).uniform(3)
        if self._crop > 1:
            img_u8_B3HW = self._random_crop(img_u8_B3HW, u_B3[:, 1], u_B3[:, 2])
        if self._flip:
            img_u8_B3HW = torch.where((u_B3[:, 0] < 0.5)[:, None, None, None], img_u8_B3HW.flip(3), img_u8_B3HW)
        if self._noise:
            noise_B1HW = rng.stream("augment", ids=position_B, step=1).normal(1, *img_u8_B3HW.shape[2:])
            noisy = img_u8_B3HW.float() + self._noise * noise_B1HW
            img_u8_B3HW = noisy.round().clamp(0, 255).to(torch.uint8)
        return img_u8_B3HW

    def _random_crop(self, img_u8_B3HW: Tensor, u_B: Tensor, v_B: Tensor) -> Tensor:
        height, width = img_u8_B3HW.shape[2:]
        larger = (round(height * self._crop), round(width * self._crop))
        large = F.interpolate(img_u8_B3HW.float(), size=larger, mode="bilinear", align_corners=False)
        windows = large.round().to(torch.uint8).unfold(2, height, 1).unfold(3, width, 1)
        y_B, x_B = (u_B * windows.shape[2]).long(), (v_B * windows.shape[3]).long()
        return windows[torch.arange(len(u_B)), :, y_B, x_B]


class TrainStream(Dataset[Batch]):
    """The endless stream, keyed by global position. A list of positions is fetched at once, as one batch."""

    def __init__(self, *, reader: ShardReader, seed: int, augment: Augment):
        self._reader, self._rng, self._augment = reader, Rng(seed), augment
        self._orders: dict[int, Tensor] = {}

    def locate(self, position_B: Tensor) -> Tensor:
        """Which sample stands at each position."""
        n = len(self._reader)
        epoch_B, place_B = position_B // n, position_B % n
        index_B = torch.empty_like(position_B)
        for epoch in torch.unique(epoch_B).tolist():
            here_B = epoch_B == epoch
            index_B[here_B] = self._order(epoch)[place_B[here_B]]
        return index_B

    def _order(self, epoch: int) -> Tensor:
        if epoch not in self._orders:
            self._orders = {e: o for e, o in self._orders.items() if e == epoch - 1}  # a batch may span two epochs
            self._orders[epoch] = order(self._rng.seed, epoch, len(self._reader))
        return self._orders[epoch]

    def __getitem__(self, position: int) -> Batch:
        return self.__getitems__([position])

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        position_B = torch.as_tensor(positions, dtype=torch.int64)
        index_B = self.locate(position_B)
        return Batch(
            img_u8_B3HW=self._augment(self._reader.images(index_B), position_B, self._rng),
            label_B=self._reader.label_N[index_B],
            position_B=position_B,
            valid_B=torch.ones_like(position_B, dtype=torch.bool),
        )


class EvalSplit(Dataset[Batch]):
    """A split in its own order. Positions past its end give the last sample again, with ``valid_B`` False."""

    def __init__(self, *, reader: ShardReader):
        self._reader = reader

    def __getitem__(self, position: int) -> Batch:
        return self.__getitems__([position])

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        position_B = torch.as_tensor(positions, dtype=torch.int64)
        index_B = position_B.clamp(max=len(self._reader) - 1)
        return Batch(
            img_u8_B3HW=self._reader.images(index_B),
            label_B=self._reader.label_N[index_B],
            position_B=index_B,
            valid_B=position_B < len(self._reader),
        )


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


def _check_share(batch: int, world: int) -> None:
    if batch < 1 or batch % world:
        raise VarlabError(f"A global batch of {batch} cannot be shared by {world} ranks: make it a multiple of that.")
