"""The steps of reading samples, one by one: what ``varlab bench`` measures."""

from __future__ import annotations

import numpy as np
import torch

from varlab.data.image.crop import Centre, box_choices
from varlab.data.image.decode import crop_into, decode
from varlab.data.shard_module import ShardDataModule

__all__ = ["ReadingSteps"]

_MOST_PIXELS = 1 << 30


class ReadingSteps:
    """Each method does its step for some training images and returns for how many.

    images: how many images to hold in memory for the steps that read nothing. batch: images in a batch.
    """

    def __init__(self, data: ShardDataModule, *, images: int, batch: int):
        self._reader, self._stream, self._batch = data.reader("train"), data.train_samples(), batch
        position_N = torch.arange(min(images, len(self._reader)))
        self._order = self._stream.order.locate(position_N).tolist()
        self._encoded = [self._reader.encoded(i) for i in self._order]
        self._decoded = [decode(encoded, form, most_pixels=_MOST_PIXELS) for encoded, form in self._encoded]
        centres = box_choices(Centre(), (1, 1), [()] * len(position_N))
        choices = self._stream.boxes(position_N) or centres
        self._boxes = [choose(*img.shape[:2]) for choose, img in zip(choices, self._decoded, strict=True)]
        height, width = self._reader.size
        self._out_BHW3 = np.zeros((batch, height, width, 3), dtype=np.uint8)
        self._at = 0

    def _rows(self) -> range:
        """The next images of those in memory."""
        first = self._at
        self._at = (first + self._batch) % max(len(self._order) - self._batch + 1, 1)
        return range(first, min(first + self._batch, len(self._order)))

    def warm(self, most_bytes: int) -> None:
        """Read every sample once, up to that many bytes, so that the disk is not measured."""
        for i in range(len(self._reader)):
            most_bytes -= len(self._reader.encoded(i)[0])
            if most_bytes < 0:
                return

    def read(self) -> int:
        """Read from the shards in random order, and check the hashes."""
        rows = self._rows()
        for row in rows:
            self._reader.encoded(self._order[row])
        return len(rows)

    def decode(self) -> int:
        """Turn bytes into pixels."""
        rows = self._rows()
        for row in rows:
            encoded, form = self._encoded[row]
            decode(encoded, form, most_pixels=_MOST_PIXELS)
        return len(rows)

    def crop(self) -> int:
        """Cut and resize to the size of training."""
        rows = self._rows()
        for place, row in enumerate(rows):
            crop_into(self._out_BHW3[place], self._decoded[row], self._boxes[row])
        return len(rows)

    def decode_and_crop(self) -> int:
        """Do both, image by image."""
        rows = self._rows()
        for place, row in enumerate(rows):
            encoded, form = self._encoded[row]
            crop_into(self._out_BHW3[place], decode(encoded, form, most_pixels=_MOST_PIXELS), self._boxes[row])
        return len(rows)

    def batch(self) -> int:
        """Do everything but images: order, random crops and flips, flipping, labels, tensors."""
        position_B = torch.arange(self._batch)
        index_B = self._stream.order.locate(position_B)
        self._stream.boxes(position_B)
        self._stream.augmented(torch.from_numpy(self._out_BHW3).permute(0, 3, 1, 2), position_B)
        _ = self._reader.label_N[index_B]
        return self._batch
