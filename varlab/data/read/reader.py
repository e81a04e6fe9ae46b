"""Samples of a shard set by number: read where they lie, verified, decoded. Nothing is streamed and nothing unpickled."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varlab.data.faults import BadSampleError
from varlab.data.format.index import Index
from varlab.data.format.storage import OpenFiles
from varlab.data.format.table import FORMAT_NAMES
from varlab.data.image.crop import Box, Centre
from varlab.data.image.decode import U8, decode, decode_into
from varlab.data.read.image_cache import Buffers, Cache, Read
from varlab.errors import VarlabError
from varlab.types import Fault

__all__ = ["Choose", "Read", "ShardReader"]

Choose = Callable[[int, int, int], Box]
"""(row of the batch, height, width of its image) → the part of it that is wanted."""


class ShardReader:
    """One split of a shard set. Sample i is the i-th of its table.

    Every sample's bytes are checked against the hash in the table, so that what was changed, cut or overwritten since is
    a fault and never an image. Files are opened once per process, so it may be forked or sent to workers.

    Args:
        size: (H, W) of what is handed out; None takes the index's, from which no image may then differ.
        cache_bytes: a split whose images fit into it is kept decoded in memory, each image from its first use on (a copy
            per worker); its conditions likewise, and apart. Only images that are taken whole.
        most_pixels: larger images are not decoded.

    Raises:
        VarlabError: no images in that split, or images of various sizes and no ``size``.
    """

    def __init__(
        self, *, index: Index, split: str, cache_bytes: int, most_pixels: int, size: tuple[int, int] | None = None
    ):
        if size is None and index.image_size is None:
            raise VarlabError(
                f"{index.path} holds images of various sizes: say to which they are brought (data.size=256)."
            )
        self._table = table = index.table(split)
        self._shards, self.size = index.splits[split], size or index.image_size or (0, 0)
        self._whole = self.size == index.image_size  # else the middle is cut out
        self._files = OpenFiles(index.storage, [(shard.file, shard.bytes) for shard in self._shards])
        self._most_pixels = most_pixels
        self._buffers = Buffers()
        self.label_N = torch.from_numpy(table["label"].astype(np.int64))
        self.box_N4 = torch.from_numpy(table["box"].copy()) if index.boxes else None
        room = cache_bytes if self._whole else 0
        self._images = Cache(len(table), self.size, room)
        self._conditions = Cache(len(table), self.size, room) if index.conditions is not None else None

    def __len__(self) -> int:
        return len(self._table)

    @property
    def has_conditions(self) -> bool:
        """Whether each sample has a second image."""
        return self._conditions is not None

    @property
    def shard_N(self) -> NDArray[np.uint32]:
        """In which of the split's shards each sample lies."""
        return self._table["shard"]

    def key(self, i: int) -> str:
        """The key of a sample."""
        return str(self._table["key"][i].decode())

    def survey(self) -> list[Fault]:
        """What the shards' sizes tell, without reading them: those that are missing or cut, and what is lost with them.

        Remote shards are not asked: they are looked at as they come.
        """
        found = []
        for number, shard in enumerate(self._shards):
            size = self._files.size_of(number)
            if size is None or size == shard.bytes:
                continue
            mine = self._table[self._table["shard"] == number]
            lost = int((mine["offset"] + mine["size"] > max(size, 0)).sum())
            kind = "missing" if size < 0 else "empty" if size == 0 else "cut" if size < shard.bytes else "changed"
            detail = "no such file" if size < 0 else f"{size} bytes, its index says {shard.bytes}"
            found.append(Fault(kind, shard.file, "", f"{detail}; {lost} samples", samples=lost))
        return found

    def prefetch(self, shards: NDArray[np.integer]) -> None:
        """Remote shards of these numbers will be wanted, in this order."""
        self._files.prefetch(shards.tolist())

    def read(self, index_B: Tensor, choose: Choose | None = None, *, second: bool = False) -> Read:
        """Images of those numbers; ``choose`` says which part of each (None: all of it). second: their conditions."""
        if choose is None and not self._whole:
            choose = self._centre
        cache = self._conditions if second else self._images
        if choose is not None or cache is None:
            return self._cut(index_B, choose, second)
        return cache.read(index_B, lambda missing_B: self._cut(missing_B, None, second))

    def images(self, index_B: Tensor) -> Tensor:
        """Whole images by number, uint8 ``img_B3HW`` in RGB.

        Raises:
            VarlabError: one that is bad.
        """
        read = self.read(index_B)
        for fault in read.faults.values():
            raise VarlabError(f"{fault}: mend it (`varlab index DIR check=true` lists all that is wrong).")
        return read.img_B3HW

    def _centre(self, row: int, height: int, width: int) -> Box:
        return Centre().box(height, width, self.size[1] / self.size[0])

    def _cut(self, index_B: Tensor, choose: Choose | None, second: bool) -> Read:
        img_BHW3 = self._buffers.take((len(index_B), *self.size, 3))
        shares, faults = [(0.0, 0.0, 1.0, 1.0)] * len(index_B), {}
        places = self._places(index_B.numpy(), second)
        for row, (place, encoded) in enumerate(zip(places, [self._tried(place) for place in places], strict=True)):
            try:
                if isinstance(encoded, BadSampleError):
                    raise encoded
                shares[row] = self._one(encoded, place.form, row, choose, img_BHW3[row])
            except BadSampleError as bad:
                img_BHW3[row] = 0
                faults[row] = Fault(bad.kind, self._shards[place.shard].file, self.key(int(index_B[row])), bad.detail)
        box_B4 = None if choose is None or self.box_N4 is None else torch.tensor(shares)
        return Read(torch.from_numpy(img_BHW3).permute(0, 3, 1, 2), faults, box_B4)

    def _one(
        self, encoded: bytes, form: str, row: int, choose: Choose | None, out_HW3: U8
    ) -> tuple[float, float, float, float]:
        """Write an image, or the chosen part of it, into ``out_HW3``; that part's shares of the image."""
        if choose is None:
            img_HW3 = decode(encoded, form, most_pixels=self._most_pixels)
            if img_HW3.shape != out_HW3.shape:
                raise BadSampleError("wrong_size", f"{img_HW3.shape[:2]}, not {self.size} (H, W)")
            out_HW3[...] = img_HW3
            return 0.0, 0.0, 1.0, 1.0
        return decode_into(out_HW3, encoded, form, partial(choose, row), most_pixels=self._most_pixels)

    def encoded(self, i: int) -> tuple[bytes, str]:
        """An image's bytes, verified, and Pillow's name of their format. BadSampleError where there is something wrong."""
        (place,) = self._places(np.array([i]), False)
        return self._bytes(place), place.form

    def _places(self, index_B: NDArray[np.int64], second: bool) -> list[_Place]:
        rows = self._table[index_B]  # the whole batch at once: field by field it would take as long as reading
        names = ("cond_offset", "cond_size", "cond_check") if second else ("offset", "size", "check")
        forms = ["PNG"] * len(rows) if second else [FORMAT_NAMES[form] for form in rows["format"].tolist()]
        return list(map(_Place, rows["shard"].tolist(), *(rows[name].tolist() for name in names), forms))

    def _tried(self, place: _Place) -> bytes | BadSampleError:
        """A sample's bytes, or why there are none. Reads of a batch in a row are faster than between decodings."""
        try:
            return self._bytes(place)
        except BadSampleError as bad:
            return bad

    def _bytes(self, place: _Place) -> bytes:
        if not place.size:
            raise BadSampleError("no_condition", "no second image")
        return self._files.read(place.shard, place.offset, place.size, place.check)


class _Place(NamedTuple):
    """Where an image's bytes lie, what they hash to, and Pillow's name of their format."""

    shard: int
    offset: int
    size: int
    check: int
    form: str
