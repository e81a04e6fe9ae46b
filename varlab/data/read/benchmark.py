"""The parts of reading samples, each alone: what ``varlab bench`` measures."""

from __future__ import annotations

import numpy as np
import torch

from varlab.data.image.crop import Box, Centre
from varlab.data.image.decode import crop_into, decode
from varlab.data.shard_module import ShardDataModule

__all__ = ["Parts"]


class Parts:
    """Each method does its part for some images of the training split and says for how many.

    images: so many are held in memory for the parts that read nothing. batch: images a batch.
    """

    def __init__(self, data: ShardDataModule, *, images: int, batch: int):
        self._reader, self._stream, self._batch = data.reader("train"), data.train_stream(), batch
        n = min(images, len(self._reader))
        self._order = self._stream.walk.locate(torch.arange(n)).tolist()
        self._encoded = [self._reader.encoded(i) for i in self._order]
        self._decoded = [decode(encoded, form, most_pixels=1 << 30) for encoded, form in self._encoded]
        self._boxes = [self._box(row, img.shape[0], img.shape[1]) for row, img in enumerate(self._decoded)]
        height, width = self._reader.size
        self._out_BHW3 = np.zeros((batch, height, width, 3), dtype=np.uint8)
        self._at = 0

    def _box(self, row: int, height: int, width: int) -> Box:
        choose = self._stream.look.choose(torch.arange(row, row + 1))
        return Centre().box(height, width, 1.0) if choose is None else choose(0, height, width)

    def _rows(self) -> range:
        """The next images of those in memory."""
        first = self._at
        self._at = (first + self._batch) % max(len(self._order) - self._batch + 1, 1)
        return range(first, min(first + self._batch, len(self._order)))

    def warm(self, most_bytes: int) -> None:
        """Read every sample once, so many bytes at most: what is measured afterwards is not the disk."""
        for i in range(len(self._reader)):
            most_bytes -= len(self._reader.encoded(i)[0])
            if most_bytes < 0:
                return

    def read(self) -> int:
        """From the shards, in random order, with their hashes."""
        rows = self._rows()
        for row in rows:
            self._reader.encoded(self._order[row])
        return len(rows)

    def decode(self) -> int:
        """Bytes to pixels."""
        rows = self._rows()
        for row in rows:
            encoded, form = self._encoded[row]
            decode(encoded, form, most_pixels=1 << 30)
        return len(rows)

    def crop(self) -> int:
        """Pixels to the size of training."""
        rows = self._rows()
        for place, row in enumerate(rows):
            crop_into(self._out_BHW3[place], self._decoded[row], self._boxes[row])
        return len(rows)

    def decode_and_crop(self) -> int:
        """Both, one image after another."""
        rows = self._rows()
        for place, row in enumerate(rows):
            encoded, form = self._encoded[row]
            crop_into(self._out_BHW3[place], decode(encoded, form, most_pixels=1 << 30), self._boxes[row])
        return len(rows)

    def batch(self) -> int:
        """Everything but images: whose turn it is, crops and flips drawn, flipped, labels, tensors."""
        position_B = torch.arange(self._batch)
        index_B = self._stream.walk.locate(position_B)
        self._stream.look.choose(position_B)
        img_u8_B3HW = torch.from_numpy(self._out_BHW3).permute(0, 3, 1, 2)
        self._stream.look.augmented(img_u8_B3HW, position_B)
        _ = self._reader.label_N[index_B]
        return self._batch
