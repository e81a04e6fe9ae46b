"""Samples of a shard set by number: read in place, checked against their hashes, decoded. Nothing is unpickled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varlab.data.faults import BadSampleError, FaultCounter
from varlab.data.format.index import Index
from varlab.data.image.crop import BoxOf, Centre, box_choices
from varlab.data.image.decode import U8, decode, decode_into
from varlab.data.image.depth import ASSUMED
from varlab.data.image.picture import PixelRules
from varlab.data.read.image_cache import Buffers, ImageCache, ReadImages
from varlab.data.storage.local_folder import StoredFile
from varlab.data.storage.open_files import OpenFiles
from varlab.errors import VarlabError
from varlab.types import Batch, Fault

__all__ = ["ShardReader"]

_COLUMNS = {
    "image": ("offset", "size", "check"),
    "condition": ("cond_offset", "cond_size", "cond_check"),
}
_WHOLE = (0.0, 0.0, 1.0, 1.0)


class ShardReader:
    """One split of a shard set; sample i is row i of its table.

    The bytes of every sample are compared with the hash in the table, so changed or cut bytes are a fault and never an image.
    Files are opened once per process, so a reader may be forked or sent to workers.

    Args:
        size: (H, W) of the images to return; None means the index's size, which every image must then have.
        cache_bytes: if the images of the split fit, each is kept decoded from its first use on (one copy per worker), and
            the conditions likewise. Only for images that are read whole.
        most_pixels: larger images are not decoded. max_bad: the largest share of samples that may be bad: once the shards
            that cannot be read hold more, no other one is tried.

    Raises:
        VarlabError: the split has no images, they differ in size and ``size`` is None, or the index says that they are too
            large; later, on reading: too many are lost.
    """

    def __init__(
        self,
        *,
        index: Index,
        split: str,
        cache_bytes: int,
        most_pixels: int,
        size: tuple[int, int] | None = None,
        max_bad: float = 1.0,
    ):
        index.require_size(size)
        self._table = table = index.table(split)
        self._shards, self.size = index.splits[split], size or index.image_size or (0, 0)
        if self.size[0] * self.size[1] > most_pixels:
            raise VarlabError(f"{index.path} holds images of {self.size} (H, W), over data.most_pixels={most_pixels}.")
        counts = {shard.file: shard.count for shard in self._shards}
        watch = {"where": index.path, "split": split}
        self.watch = FaultCounter(**watch, n=len(table), most=max_bad, shards=counts)
        """Counts the bad samples, for who reads."""
        self._expected = FaultCounter(**watch, n=len(table), most=max_bad, shards=counts)
        self._whole = self.size == index.image_size  # otherwise the centre is cut out
        self._files = OpenFiles(
            index.shard_storage, [StoredFile(shard.file, shard.bytes, shard.sha256) for shard in self._shards]
        )
        self._rules = {"image": PixelRules(most_pixels=most_pixels, depths={**ASSUMED, **index.depth}, keys="data.")}
        self._rules["condition"] = PixelRules(most_pixels=most_pixels, keys="data.")
        self._buffers = Buffers()
        self.label_N = torch.from_numpy(table["label"].astype(np.int64))
        self._box_N4 = torch.from_numpy(table["box"].copy()) if index.boxes else None
        kinds = ["image"] if index.conditions is None else ["image", "condition"]
        self._caches = {kind: ImageCache(len(table), self.size, cache_bytes if self._whole else 0) for kind in kinds}

    def __len__(self) -> int:
        return len(self._table)

    @property
    def shard_N(self) -> NDArray[np.uint32]:
        """The shard of each sample, as its place in the split."""
        return self._table["shard"]

    def key(self, i: int) -> str:
        """The key of a sample."""
        return str(self._table["key"][i].decode(errors="backslashreplace"))

    def survey(self) -> list[Fault]:
        """Compare the sizes of local shards with the index: name those that are missing or cut, and count their samples.

        Remote shards are checked when they are read.
        """
        faults = []
        for number, shard in enumerate(self._shards):
            size = self._files.size_of(number)
            if size is None or size == shard.bytes:
                continue
            mine = self._table[self._table["shard"] == number]
            lost = int((mine["offset"] + mine["size"] > max(size, 0)).sum())
            kind = "missing" if size < 0 else "empty" if size == 0 else "cut" if size < shard.bytes else "changed"
            detail = "no such file" if size < 0 else f"{size} bytes, its index says {shard.bytes}"
            faults.append(Fault(kind, shard.file, "", f"{detail}; {lost} samples", samples=lost))
        return faults

    def prefetch(self, shards: NDArray[np.integer]) -> None:
        """Fetch remote shards of these numbers in advance, in this order."""
        self._files.prefetch(shards.tolist())

    def batch(self, index_B: Tensor, boxes_B: Sequence[BoxOf] | None = None, *, view: str = "image") -> Batch:
        """The samples of those numbers, which are also their positions; bad ones are not valid, and named in ``faults``.

        view: "condition" returns the conditions as the images.
        """
        read = self.read(index_B, boxes_B, kind=view)
        cond_u8_B3HW, faults = None, read.faults
        if view == "image" and "condition" in self._caches:
            condition = self.read(index_B, boxes_B, kind="condition")
            cond_u8_B3HW, faults = condition.img_B3HW, {**condition.faults, **read.faults}
        valid_B = torch.ones_like(index_B, dtype=torch.bool)
        valid_B[list(faults)] = False
        return Batch(
            img_u8_B3HW=read.img_B3HW,
            label_B=self.label_N[index_B],
            position_B=index_B,
            valid_B=valid_B,
            cond_u8_B3HW=cond_u8_B3HW,
            box_B4=None if self._box_N4 is None else _part(self._box_N4[index_B], read.box_B4),
            faults=tuple(faults.values()),
        )

    def read(self, index_B: Tensor, boxes_B: Sequence[BoxOf] | None = None, *, kind: str = "image") -> ReadImages:
        """Images of those numbers, or their conditions. boxes_B: chooses the part of each image; None reads all of it."""
        if boxes_B is None and not self._whole:
            boxes_B = box_choices(Centre(), self.size, [()] * len(index_B))
        if boxes_B is not None or kind not in self._caches:
            return self._read(index_B, boxes_B, kind)
        return self._caches[kind].read(index_B, lambda missing_B: self._read(missing_B, None, kind))

    def images(self, index_B: Tensor) -> Tensor:
        """Whole images by number, uint8 ``img_B3HW`` in RGB.

        Raises:
            VarlabError: an image is bad.
        """
        read = self.read(index_B)
        for fault in read.faults.values():
            raise VarlabError(f"{fault}: repair it (`varlab index DIR check=true` lists all faults).")
        return read.img_B3HW

    def encoded(self, i: int) -> bytes:
        """The checked bytes of an image. Raises BadSampleError if they are bad."""
        (location,) = self._locate(np.array([i]), "image")
        return self._bytes(location)

    def _read(self, index_B: Tensor, boxes_B: Sequence[BoxOf] | None, kind: str) -> ReadImages:
        img_BHW3 = self._buffers.take((len(index_B), *self.size, 3))
        shares, faults, rules = [_WHOLE] * len(index_B), {}, self._rules[kind]
        locations = self._locate(index_B.numpy(), kind)
        encoded_B = [self._try_bytes(location) for location in locations]  # faster than reading between decodings
        for row, (location, encoded) in enumerate(zip(locations, encoded_B, strict=True)):
            try:
                if isinstance(encoded, BadSampleError):
                    raise encoded
                if boxes_B is None:
                    self._decode_whole(img_BHW3[row], encoded, rules)
                else:
                    shares[row] = decode_into(img_BHW3[row], encoded, boxes_B[row], rules)
            except BadSampleError as bad:
                img_BHW3[row] = 0
                shard, key = self._shards[location.shard].file, self.key(int(index_B[row]))
                faults[row] = Fault(bad.kind, shard, key, bad.detail)
        box_B4 = None if boxes_B is None or self._box_N4 is None else torch.tensor(shares)
        return ReadImages(torch.from_numpy(img_BHW3).permute(0, 3, 1, 2), faults, box_B4)

    def _decode_whole(self, out_HW3: U8, encoded: bytes, rules: PixelRules) -> None:
        img_HW3 = decode(encoded, rules)
        if img_HW3.shape != out_HW3.shape:
            raise BadSampleError("wrong_size", f"{img_HW3.shape[:2]}, not {self.size} (H, W)")
        out_HW3[...] = img_HW3

    def _locate(self, index_B: NDArray[np.int64], kind: str) -> list[_Location]:
        rows = self._table[index_B]  # the whole batch at once: reading the table field by field is slow
        return list(map(_Location, rows["shard"].tolist(), *(rows[name].tolist() for name in _COLUMNS[kind])))

    def _try_bytes(self, location: _Location) -> bytes | BadSampleError:
        try:
            return self._bytes(location)
        except BadSampleError as bad:
            if bad.kind == "missing":
                self._expected.expect([Fault(bad.kind, self._shards[location.shard].file, "", bad.detail)])
            return bad

    def _bytes(self, location: _Location) -> bytes:
        if not location.size:
            raise BadSampleError("no_condition", "no second image")
        return self._files.read(location.shard, location.offset, location.size, location.check)


class _Location(NamedTuple):
    """The place of an image's bytes, and their hash."""

    shard: int
    offset: int
    size: int
    check: int


def _part(box_B4: Tensor, share_B4: Tensor | None) -> Tensor:
    """The place of a part of an image, when the image lies at ``box_B4`` and the part is given as shares of it."""
    if share_B4 is None:
        return box_B4
    first_B2, last_B2 = box_B4[:, :2], box_B4[:, 2:]
    span_B2 = last_B2 - first_B2
    return torch.cat([first_B2 + share_B4[:, :2] * span_B2, first_B2 + share_B4[:, 2:] * span_B2], 1)
