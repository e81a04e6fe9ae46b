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

__all__ = ["Augment", "EvalBatches", "EvalSplit", "TrainBatches", "TrainStream", "fetch", "order"]


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
        return self._noisy(self.moved(img_u8_B3HW, position_B, rng), position_B, rng)

    def moved(self, img_u8_B3HW: Tensor, position_B: Tensor, rng: Rng) -> Tensor:
        """Crop and flip alone: what an image and its condition go through alike."""
        flip_B, u_B, v_B = self._draws(position_B, rng)
        if self._crop > 1:
            img_u8_B3HW = self._random_crop(img_u8_B3HW, u_B, v_B)
        if self._flip:
            img_u8_B3HW = torch.where(flip_B[:, None, None, None], img_u8_B3HW.flip(3), img_u8_B3HW)
        return img_u8_B3HW

    def boxes(self, box_B4: Tensor, size: tuple[int, int], position_B: Tensor, rng: Rng) -> Tensor:
        """Where in their pictures the moved images of that (H, W) lie; left and right change places in a flipped one."""
        flip_B, u_B, v_B = self._draws(position_B, rng)
        top_B, left_B, bottom_B, right_B = box_B4.unbind(1)
        if self._crop > 1:
            top_B, bottom_B = self._within(top_B, bottom_B, size[0], u_B)
            left_B, right_B = self._within(left_B, right_B, size[1], v_B)
        if self._flip:
            left_B, right_B = torch.where(flip_B, right_B, left_B), torch.where(flip_B, left_B, right_B)
        return torch.stack([top_B, left_B, bottom_B, right_B], 1)

    def _draws(self, position_B: Tensor, rng: Rng) -> tuple[Tensor, Tensor, Tensor]:
        """Whether to flip, and the crop's place from the top and from the left in [0, 1)."""
        u_B3 = rng.stream("augment", ids=position_B).uniform(3)
        return u_B3[:, 0] < 0.5, u_B3[:, 1], u_B3[:, 2]

    def _noisy(self, img_u8_B3HW: Tensor, position_B: Tensor, rng: Rng) -> Tensor:
        if not self._noise:
            return img_u8_B3HW
        noise_B1HW = rng.stream("augment", ids=position_B, step=1).normal(1, *img_u8_B3HW.shape[2:])
        return (img_u8_B3HW.float() + self._noise * noise_B1HW).round().clamp(0, 255).to(torch.uint8)

    def _within(self, low_B: Tensor, high_B: Tensor, side: int, u_B: Tensor) -> tuple[Tensor, Tensor]:
        """The part of [low, high] that a crop of ``side`` of the enlarged side's pixels covers."""
        large = round(side * self._crop)
        first_B = (u_B * (large - side + 1)).long()
        span_B = (high_B - low_B) / large
        return low_B + first_B * span_B, low_B + (first_B + side) * span_B

    def _random_crop(self, img_u8_B3HW: Tensor, u_B: Tensor, v_B: Tensor) -> Tensor:
        height, width = img_u8_B3HW.shape[2:]
        larger = (round(height * self._crop), round(width * self._crop))
        large = F.interpolate(img_u8_B3HW.float(), size=larger, mode="bilinear", align_corners=False)
        windows = large.round().to(torch.uint8).unfold(2, height, 1).unfold(3, width, 1)
        y_B, x_B = (u_B * windows.shape[2]).long(), (v_B * windows.shape[3]).long()
        return windows[torch.arange(len(u_B)), :, y_B, x_B]


class TrainStream(Dataset[Batch]):
    """The endless stream, keyed by global position. A list of positions is fetched at once, as one batch.

    view: "image", or "condition" to hand out the conditions as the images.
    """

    def __init__(self, *, reader: ShardReader, seed: int, augment: Augment, view: str = "image"):
        self._reader, self._rng, self._augment, self._view = reader, Rng(seed), augment, view
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
        batch = fetch(self._reader, index_B, self._view)
        cond, box, size = batch.cond_u8_B3HW, batch.box_B4, (batch.img_u8_B3HW.shape[2], batch.img_u8_B3HW.shape[3])
        return Batch(
            img_u8_B3HW=self._augment(batch.img_u8_B3HW, position_B, self._rng),
            label_B=batch.label_B,
            position_B=position_B,
            valid_B=batch.valid_B,
            cond_u8_B3HW=None if cond is None else self._augment.moved(cond, position_B, self._rng),
            box_B4=None if box is None else self._augment.boxes(box, size, position_B, self._rng),
        )


def fetch(reader: ShardReader, index_B: Tensor, view: str) -> Batch:
    """The samples of those numbers as they were packed; the numbers are their positions."""
    second = view == "condition"
    return Batch(
        img_u8_B3HW=reader.conditions(index_B) if second else reader.images(index_B),
        label_B=reader.label_N[index_B],
        position_B=index_B,
        valid_B=torch.ones_like(index_B, dtype=torch.bool),
        cond_u8_B3HW=reader.conditions(index_B) if reader.has_conditions and not second else None,
        box_B4=None if reader.box_N4 is None else reader.box_N4[index_B],
    )


class EvalSplit(Dataset[Batch]):
    """A split in its own order. Positions past its end give the last sample again, with ``valid_B`` False."""

    def __init__(self, *, reader: ShardReader, view: str = "image"):
        self._reader, self._view = reader, view

    def __getitem__(self, position: int) -> Batch:
        return self.__getitems__([position])

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        position_B = torch.as_tensor(positions, dtype=torch.int64)
        batch = fetch(self._reader, position_B.clamp(max=len(self._reader) - 1), self._view)
        batch.valid_B = position_B < len(self._reader)
        return batch


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
