"""Samples of a shard set by number: no streaming, no unpickling, and nothing cut off that would go unnoticed."""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from varlab.data.index import Index, Shard
from varlab.data.tar import FORMATS, Place, scan
from varlab.errors import VarlabError

__all__ = ["ShardReader"]

U8 = NDArray[np.uint8]
KINDS = sorted(set(FORMATS.values()))


class ShardReader:
    """One split of a shard set. Sample i is the i-th of its shards in the index's order.

    Reads with ``os.pread`` from files opened once per process, so it may be forked or sent to workers. A split whose
    decoded images fit into ``cache_bytes`` is kept in memory, each image from its first use on (a copy per worker); its
    conditions likewise, and apart. box_N4: where each sample lies in its picture, None where the shards do not tell.

    Raises:
        VarlabError: no images in that split, a shard that is missing, cut or damaged, a label outside the classes.
    """

    def __init__(self, *, index: Index, split: str, cache_bytes: int):
        shards = index.splits.get(split, ())
        if not sum(s.count for s in shards):
            raise VarlabError(f"The shard set {index.path} holds no {split} images: pack one that does.")
        files = _Files([index.path / s.file for s in shards])
        shard_places = [_scan(index, s) for s in shards]
        places = [p for shard in shard_places for p in shard]
        shard_N = np.repeat(np.arange(len(shards)), [len(p) for p in shard_places])
        self.label_N = torch.tensor([p.label for p in places], dtype=torch.int64)
        self.box_N4 = torch.tensor([p.box for p in places], dtype=torch.float32) if index.boxes else None
        images = [(p.offset, p.size, KINDS.index(p.format)) for p in places]
        self._images = _Images(files, shard_N, images, size=index.image_size, cache_bytes=cache_bytes)
        self._conditions: _Images | None = None
        if index.conditions is not None:
            seconds = [(*_condition(p, index), KINDS.index("PNG")) for p in places]
            self._conditions = _Images(files, shard_N, seconds, size=index.image_size, cache_bytes=cache_bytes)

    def __len__(self) -> int:
        return self.label_N.shape[0]

    @property
    def has_conditions(self) -> bool:
        """Whether each sample has a second image."""
        return self._conditions is not None

    def images(self, index_B: Tensor) -> Tensor:
        """The images of those numbers, uint8 ``img_B3HW`` in RGB (grey is repeated).

        Raises:
            VarlabError: an image that cannot be decoded or has another size than the index says.
        """
        return self._images(index_B)

    def conditions(self, index_B: Tensor) -> Tensor:
        """The second images of those numbers, as ``images``. Only where ``has_conditions``."""
        assert self._conditions is not None
        return self._conditions(index_B)


def _scan(index: Index, shard: Shard) -> list[Place]:
    path = index.path / shard.file
    if not path.is_file():
        raise VarlabError(f"The shard {path} is missing: pack the set again or copy it here.")
    if (size := path.stat().st_size) != shard.bytes:
        raise VarlabError(f"The shard {path} has {size} bytes, its index says {shard.bytes}: copy it again.")
    places = list(scan(path, classes=len(index.classes), boxes=index.boxes))
    if len(places) != shard.count:
        raise VarlabError(f"The shard {path} has {len(places)} images, its index {shard.count}: pack it again.")
    return places


def _condition(place: Place, index: Index) -> tuple[int, int]:
    if place.condition is None:
        raise VarlabError(f"Sample {place.key} in {index.path} lacks its condition (cond.png): pack the set again.")
    return place.condition


class _Files:
    """The shards of a split, each opened once per process."""

    def __init__(self, paths: list[Path]):
        self.paths = paths
        self._open: dict[int, int] = {}
        self._pid = os.getpid()

    def read(self, shard: int, size: int, offset: int) -> bytes:
        """So many bytes from that offset on."""
        if self._pid != os.getpid():  # forked: the parent's descriptors are the parent's to close
            self._open, self._pid = {}, os.getpid()
        if shard not in self._open:
            self._open[shard] = os.open(self.paths[shard], os.O_RDONLY)
        return os.pread(self._open[shard], size, offset)

    def __getstate__(self) -> dict[str, object]:
        return {"paths": self.paths, "_open": {}, "_pid": -1}

    def __del__(self) -> None:
        if getattr(self, "_pid", -1) == os.getpid():
            for fd in self._open.values():
                os.close(fd)


class _Images:
    """One image of every sample. places: (offset, size, format) of each; shard_N: in which shard."""

    def __init__(
        self,
        files: _Files,
        shard_N: NDArray[np.int64],
        places: list[tuple[int, int, int]],
        *,
        size: tuple[int, int],
        cache_bytes: int,
    ):
        self._files, self._shard_N, self._size = files, shard_N, size
        self._place_N3 = np.array(places, dtype=np.int64).reshape(-1, 3)
        self._cached = len(places) * 3 * size[0] * size[1] <= cache_bytes
        self._cache_N3HW: Tensor | None = None
        self._filled_N: Tensor | None = None

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_cache_N3HW": None, "_filled_N": None}

    def __call__(self, index_B: Tensor) -> Tensor:
        if not self._cached:
            return torch.from_numpy(self._decode_all(index_B))
        if self._cache_N3HW is None or self._filled_N is None:
            self._cache_N3HW = torch.empty((len(self._place_N3), 3, *self._size), dtype=torch.uint8)
            self._filled_N = torch.zeros(len(self._place_N3), dtype=torch.bool)
        missing = torch.unique(index_B[~self._filled_N[index_B]])
        if len(missing):
            self._cache_N3HW[missing] = torch.from_numpy(self._decode_all(missing))
            self._filled_N[missing] = True
        return self._cache_N3HW[index_B]

    def _decode_all(self, index_B: Tensor) -> U8:
        img_B3HW = np.empty((len(index_B), 3, *self._size), dtype=np.uint8)
        for row, i in enumerate(index_B.tolist()):
            img_B3HW[row] = self._decode(i)
        return img_B3HW

    def _decode(self, i: int) -> U8:
        offset, size, kind = self._place_N3[i].tolist()
        encoded = self._files.read(int(self._shard_N[i]), size, offset)
        try:
            with Image.open(io.BytesIO(encoded), formats=[KINDS[kind]]) as image:
                img_HW3 = np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
            raise VarlabError(f"{self._name(i)} cannot be decoded ({e}): pack the set again.") from e
        if img_HW3.shape[:2] != self._size:
            raise VarlabError(f"{self._name(i)} is {img_HW3.shape[:2]}, its index says {self._size} (H, W).")
        return img_HW3.transpose(2, 0, 1)

    def _name(self, i: int) -> str:
        """A sample as errors call it: its key is in the header before it."""
        shard = int(self._shard_N[i])
        header = self._files.read(shard, 100, int(self._place_N3[i, 0]) - 512)
        return f"Sample {header.split(bytes(1))[0].decode(errors='replace')} in {self._files.paths[shard]}"
