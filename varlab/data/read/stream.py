"""Training samples by position, cropped and augmented; and a split in its own order."""

from __future__ import annotations

from torch import Tensor

from varlab.data.image.augment import Augment
from varlab.data.image.crop import BoxOf, Crop, box_choices, draws
from varlab.data.read.epoch_order import EpochOrder
from varlab.data.read.loader import BatchDataset, SplitDataset
from varlab.data.read.reader import ShardReader
from varlab.rng import Rng
from varlab.types import Batch

__all__ = ["EvalSplit", "TrainStream", "TrainViews"]


class TrainStream(BatchDataset):
    """The endless training samples: each a function of (seed, position) alone.

    A sample that cannot be read is replaced by another, and named in the batch's faults.

    Args:
        view: "image", or "condition" to return the conditions as the images.
        crop: chooses the part of each image; None takes all of it. augment: applied to each batch.
        views: 0 sees an image in a new way (crop, flip, noise) each time. Otherwise each image has so many fixed views, which
            can be encoded once. views_seed: decides how they look; the seed of training decides which view comes.
        open_shards: see ``EpochOrder``.
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
        self.order = EpochOrder(seed=seed, shard_N=reader.shard_N, views=views, open_shards=open_shards)
        self._reader, self._view, self._views = reader, view, views
        self._augment, self._crop, self._rng = augment, crop, Rng(views_seed if views else seed)
        self._prefetched = -1

    def at(self, position_B: Tensor) -> Batch:
        """The samples at those positions, all of them valid."""
        self._prefetch(int(position_B[0]))
        index_B = self.order.locate(position_B)
        batch = self.seen(index_B, self._ids(index_B, position_B))
        columns, faults = batch.state(), list(batch.faults)
        for row_b, index_b in self.order.substitutes(position_B, batch.valid_B):
            other = self.seen(index_b, self._ids(index_b, position_B[row_b]))
            for name, value in other.state().items():
                columns[name][row_b] = value
            faults += other.faults
        batch.position_B, batch.faults = position_B, tuple(faults)
        return batch

    def seen(self, index_B: Tensor, ids_B: Tensor) -> Batch:
        """Samples by number, cropped and augmented by these random ids; bad ones are not valid."""
        batch = self._reader.batch(index_B, self.boxes(ids_B), view=self._view)
        if batch.box_B4 is not None:
            height, width = batch.img_u8_B3HW.shape[2:]
            batch.box_B4 = self._augment.boxes(batch.box_B4, (height, width), ids_B, self._rng)
        if batch.cond_u8_B3HW is not None:
            batch.cond_u8_B3HW = self._augment.moved(batch.cond_u8_B3HW, ids_B, self._rng)
        batch.img_u8_B3HW = self.augmented(batch.img_u8_B3HW, ids_B)
        return batch

    def boxes(self, ids_B: Tensor) -> list[BoxOf] | None:
        """How the part of each image is chosen; None: all of it."""
        if self._crop is None:
            return None
        return box_choices(self._crop, self._reader.size, draws(self._rng.stream("crop", ids_B)))

    def augmented(self, img_u8_B3HW: Tensor, ids_B: Tensor) -> Tensor:
        """Flip, crop and add noise to images that are cut out already."""
        return self._augment(img_u8_B3HW, ids_B, self._rng)

    def _ids(self, index_B: Tensor, position_B: Tensor) -> Tensor:
        return index_B * self._views + self.order.view(position_B) if self._views else position_B

    def _prefetch(self, position: int) -> None:
        """Announce the next shards to the reader, 64 times an epoch."""
        part = position // max(len(self.order) // 64, 1)
        if part == self._prefetched:
            return
        self._prefetched = part
        shards = self.order.shards_near(position)
        if shards is not None:
            self._reader.prefetch(shards)


class TrainViews(BatchDataset):
    """Every fixed view of every training sample: item i · views + j is view j of sample i."""

    def __init__(self, stream: TrainStream, views: int):
        self._stream, self._views = stream, views

    def at(self, position_B: Tensor) -> Batch:
        """Bad samples are not valid."""
        batch = self._stream.seen(position_B // self._views, position_B)
        batch.position_B = position_B
        return batch


class EvalSplit(SplitDataset):
    """A split in its own order: whole images, or the centres where sizes differ.

    Bad samples are not valid. Positions past the end repeat the last sample.
    """

    def __init__(self, *, reader: ShardReader, view: str = "image"):
        self._reader, self._view = reader, view

    def __len__(self) -> int:
        return len(self._reader)

    def at(self, position_B: Tensor) -> Batch:
        """The samples at those positions."""
        batch = self._reader.batch(position_B.clamp(max=len(self) - 1), view=self._view)
        batch.valid_B &= position_B < len(self)
        return batch
