"""The exact stream: the samples of the walk, read, cropped and augmented as functions of (seed, position) alone."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.utils.data import Dataset

from varlab.data.image.augment import Augment
from varlab.data.image.crop import Box, Crop, draws
from varlab.data.read.epochs import ATTEMPTS, Walk
from varlab.data.read.reader import Choose, ShardReader
from varlab.errors import VarlabError
from varlab.rng import Rng
from varlab.types import Batch, Fault

__all__ = ["Augment", "EvalSplit", "TrainStream", "Ways", "fetch"]


class Look:
    """How training sees an image: which part of it, and what becomes of that; a function of (rng, id) alone.

    crop: chooses what is cut out of an image as it is read; None takes all of it. augment: what batches go through.
    """

    def __init__(self, *, reader: ShardReader, augment: Augment, crop: Crop | None, rng: Rng, view: str):
        self._reader, self._augment, self._crop, self._rng, self._view = reader, augment, crop, rng, view

    def __call__(self, index_B: Tensor, ids_B: Tensor) -> tuple[Batch, Tensor]:
        """The samples, at positions yet to be given; and which rows (bool) are bad, named in the batch's faults."""
        batch = fetch(self._reader, index_B, self._view, self.choose(ids_B))
        cond, box, size = batch.cond_u8_B3HW, batch.box_B4, (batch.img_u8_B3HW.shape[2], batch.img_u8_B3HW.shape[3])
        seen = Batch(
            img_u8_B3HW=self.augmented(batch.img_u8_B3HW, ids_B),
            label_B=batch.label_B,
            position_B=ids_B,
            valid_B=torch.ones_like(batch.valid_B),
            cond_u8_B3HW=None if cond is None else self._augment.moved(cond, ids_B, self._rng),
            box_B4=None if box is None else self._augment.boxes(box, size, ids_B, self._rng),
            faults=batch.faults,
        )
        return seen, ~batch.valid_B

    def augmented(self, img_u8_B3HW: Tensor, ids_B: Tensor) -> Tensor:
        """What becomes of a batch that is cut out already."""
        return self._augment(img_u8_B3HW, ids_B, self._rng)

    def choose(self, ids_B: Tensor) -> Choose | None:
        """What is cut out of the images of those ids; None: all of them."""
        crop = self._crop
        if crop is None:
            return None
        aspect = self._reader.size[1] / self._reader.size[0]
        drawn_B = draws(self._rng.stream("crop", ids_B))

        def choose(row: int, height: int, width: int) -> Box:
            return crop.box(height, width, aspect, drawn_B[row])

        return choose


class TrainStream(Dataset[Batch]):
    """The endless stream, keyed by global position. A list of positions is fetched at once, as one batch.

    A sample that cannot be read is replaced by another and named in the batch's faults.

    view: "image", or "condition" to hand out the conditions as the images. views: 0 sees an image in another way (crop,
    flip, noise) each time; else in one of so many that are its own and the same in every epoch, so that they can be encoded
    once. views_seed: of those ways; which of them comes is the training seed's.
    """

    def __init__(
        self,
        *,
        reader: ShardReader,
        seed: int,
        augment: Augment,
        view: str = "image",
        crop: Crop | None = None,
        views: int = 0,
        views_seed: int = 0,
        open_shards: int | None = None,
    ):
        self._reader, self._views = reader, views
        drawn = Rng(views_seed if views else seed)
        self.look = Look(reader=reader, augment=augment, crop=crop, rng=drawn, view=view)
        self.walk = Walk(seed=seed, shard_N=reader.shard_N, views=views, open_shards=open_shards)
        self._last = -1

    def __getitem__(self, position: int) -> Batch:
        return self.__getitems__([position])

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        position_B = torch.as_tensor(positions, dtype=torch.int64)
        self._announce(int(position_B[0]))
        index_B = self.walk.locate(position_B)
        batch, bad_B = self.look(index_B, self._ids(index_B, position_B))
        batch.position_B = position_B
        return self._substituted(batch, bad_B) if bool(bad_B.any()) else batch

    def _ids(self, index_B: Tensor, position_B: Tensor) -> Tensor:
        return index_B * self._views + self.walk.view(position_B) if self._views else position_B

    def seen(self, index_B: Tensor, view_B: Tensor) -> Batch:
        """Samples by number, each in one of its counted ways; bad ones are not valid."""
        batch, bad_B = self.look(index_B, index_B * self._views + view_B)
        batch.valid_B = ~bad_B
        return batch

    def _substituted(self, batch: Batch, bad_B: Tensor) -> Batch:
        """The batch with whole samples in its bad rows."""
        faults: list[Fault] = list(batch.faults)
        for attempt in range(1, ATTEMPTS + 1):
            row_b = bad_B.nonzero()[:, 0]
            position_b = batch.position_B[row_b]
            index_b = self.walk.substitute(position_b, attempt)
            other, still_b = self.look(index_b, self._ids(index_b, position_b))
            for name in ("img_u8_B3HW", "label_B", "cond_u8_B3HW", "box_B4"):
                if getattr(batch, name) is not None:
                    getattr(batch, name)[row_b] = getattr(other, name)
            bad_B[row_b] = still_b
            faults += other.faults
            if not bool(bad_B.any()):
                batch.faults = tuple(faults)
                return batch
        raise VarlabError(f"No whole sample was found in {ATTEMPTS} attempts; the last was bad by {faults[-1]}.")

    def _announce(self, position: int) -> None:
        """Tell the reader which shards are coming, once for each group of them."""
        n = len(self._reader)
        wanted = (
            self.walk.shuffle.wanted(position // n, position % n) if position // max(n // 64, 1) != self._last else None
        )
        self._last = position // max(n // 64, 1)
        if wanted is not None:
            self._reader.prefetch(wanted)


def fetch(reader: ShardReader, index_B: Tensor, view: str, choose: Choose | None = None) -> Batch:
    """The samples of those numbers, which are their positions; bad ones are not valid, and named in ``faults``."""
    second = view == "condition"
    read = reader.read(index_B, choose, second=second)
    other = reader.read(index_B, choose, second=True) if reader.has_conditions and not second else None
    faults = {**(other.faults if other else {}), **read.faults}
    valid_B = torch.ones_like(index_B, dtype=torch.bool)
    valid_B[list(faults)] = False
    box_B4 = None if reader.box_N4 is None else reader.box_N4[index_B]
    return Batch(
        img_u8_B3HW=read.img_B3HW,
        label_B=reader.label_N[index_B],
        position_B=index_B,
        valid_B=valid_B,
        cond_u8_B3HW=other.img_B3HW if other else None,
        box_B4=box_B4 if box_B4 is None or read.box_B4 is None else _within(box_B4, read.box_B4),
        faults=tuple(faults.values()),
    )


def _within(box_B4: Tensor, share_B4: Tensor) -> Tensor:
    """Where a part (in shares) of what lies at a box lies."""
    first_B2, last_B2 = box_B4[:, :2], box_B4[:, 2:]
    span_B2 = last_B2 - first_B2
    return torch.cat([first_B2 + share_B4[:, :2] * span_B2, first_B2 + share_B4[:, 2:] * span_B2], 1)


class EvalSplit(Dataset[Batch]):
    """A split in its own order, each image whole (or its centre, where sizes differ). Positions past its end give the last
    sample again, with ``valid_B`` False; so is a sample that cannot be read."""

    def __init__(self, *, reader: ShardReader, view: str = "image"):
        self._reader, self._view = reader, view

    def __getitem__(self, position: int) -> Batch:
        return self.__getitems__([position])

    def __getitems__(self, positions: Sequence[int]) -> Batch:
        position_B = torch.as_tensor(positions, dtype=torch.int64)
        batch = fetch(self._reader, position_B.clamp(max=len(self._reader) - 1), self._view)
        batch.valid_B &= position_B < len(self._reader)
        return batch


class Ways(Dataset[Batch]):
    """Item i · ways + j is sample i of training in its j-th way."""

    def __init__(self, stream: TrainStream, ways: int):
        self._stream, self._ways = stream, ways

    def __getitem__(self, item: int) -> Batch:
        return self.__getitems__([item])

    def __getitems__(self, items: Sequence[int]) -> Batch:
        item_B = torch.as_tensor(items, dtype=torch.int64)
        return self._stream.seen(item_B // self._ways, item_B % self._ways)
