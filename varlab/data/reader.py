"""Samples of a shard set by number: no streaming, no unpickling, and nothing cut off that would go unnoticed."""

from __future__ import annotations

import io
import os

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


class ShardReader:
    """One split of a shard set. Sample i is the i-th of its shards in the index's order.

    Reads with ``os.pread`` from files opened once per process, so it may be forked or sent to workers. A split whose
    decoded images fit into ``cache_bytes`` is kept in memory, each image from its first use on (a copy per worker).

    Raises:
        VarlabError: no images in that split, a shard that is missing, cut or damaged, a label outside the classes.
    """

    def __init__(self, *, index: Index, split: str, cache_bytes: int):
        shards = index.splits.get(split, ())
        if not sum(s.count for s in shards):
            raise VarlabError(f"The shard set {index.path} holds no {split} images: pack one that does.")
        self._paths = [index.path / s.file for s in shards]
        self._image_size = index.image_size
        places = [self._scan(i, s, len(index.classes)) for i, s in enumerate(shards)]
        formats = sorted(set(FORMATS.values()))
        self._formats = formats
        self._shard_N = np.repeat(np.arange(len(places)), [len(p) for p in places])
        self._offset_N = np.array([p.offset for shard in places for p in shard], dtype=np.int64)
        self._size_N = np.array([p.size for shard in places for p in shard], dtype=np.int64)
        self._format_N = np.array([formats.index(p.format) for shard in places for p in shard], dtype=np.int8)
        self.label_N = torch.tensor([p.label for shard in places for p in shard], dtype=torch.int64)
        self._cached = len(self) * 3 * self._image_size[0] * self._image_size[1] <= cache_bytes
        self._forget()

    def _forget(self) -> None:
        """The state of a fresh process: no files open, nothing cached."""
        self._files: dict[int, int] = {}
        self._pid = os.getpid()
        self._cache_N3HW: Tensor | None = None
        self._filled_N: Tensor | None = None

    def _scan(self, i: int, shard: Shard, classes: int) -> list[Place]:
        path = self._paths[i]
        if not path.is_file():
            raise VarlabError(f"The shard {path} is missing: pack the set again or copy it here.")
        if (size := path.stat().st_size) != shard.bytes:
            raise VarlabError(f"The shard {path} has {size} bytes, its index says {shard.bytes}: copy it again.")
        places = list(scan(path, classes=classes))
        if len(places) != shard.count:
            raise VarlabError(f"The shard {path} has {len(places)} images, its index {shard.count}: pack it again.")
        return places

    def __len__(self) -> int:
        return self.label_N.shape[0]

    def __getstate__(self) -> dict[str, object]:
        dropped = {"_files": {}, "_pid": -1, "_cache_N3HW": None, "_filled_N": None}
        return {**self.__dict__, **dropped}

    def __del__(self) -> None:
        if getattr(self, "_pid", -1) == os.getpid():
            for fd in self._files.values():
                os.close(fd)

    def images(self, index_B: Tensor) -> Tensor:
        """The images of those numbers, uint8 ``img_B3HW`` in RGB (grey is repeated).

        Raises:
            VarlabError: an image that cannot be decoded or has another size than the index says.
        """
        if not self._cached:
            return torch.from_numpy(self._decode_all(index_B))
        if self._cache_N3HW is None or self._filled_N is None:
            self._cache_N3HW = torch.empty((len(self), 3, *self._image_size), dtype=torch.uint8)
            self._filled_N = torch.zeros(len(self), dtype=torch.bool)
        missing = torch.unique(index_B[~self._filled_N[index_B]])
        if len(missing):
            self._cache_N3HW[missing] = torch.from_numpy(self._decode_all(missing))
            self._filled_N[missing] = True
        return self._cache_N3HW[index_B]

    def _decode_all(self, index_B: Tensor) -> U8:
        img_B3HW = np.empty((len(index_B), 3, *self._image_size), dtype=np.uint8)
        for row, i in enumerate(index_B.tolist()):
            img_B3HW[row] = self._decode(i)
        return img_B3HW

    def _decode(self, i: int) -> U8:
        encoded = os.pread(self._file(int(self._shard_N[i])), int(self._size_N[i]), int(self._offset_N[i]))
        try:
            with Image.open(io.BytesIO(encoded), formats=[self._formats[self._format_N[i]]]) as image:
                img_HW3 = np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
            raise VarlabError(f"{self._name(i)} cannot be decoded ({e}): pack the set again.") from e
        if img_HW3.shape[:2] != self._image_size:
            raise VarlabError(f"{self._name(i)} is {img_HW3.shape[:2]}, its index says {self._image_size} (H, W).")
        return img_HW3.transpose(2, 0, 1)

    def _file(self, shard: int) -> int:
        if self._pid != os.getpid():  # forked: the parent's descriptors are the parent's to close
            self._files, self._pid = {}, os.getpid()
        if shard not in self._files:
            self._files[shard] = os.open(self._paths[shard], os.O_RDONLY)
        return self._files[shard]

    def _name(self, i: int) -> str:
        """A sample as errors call it: its key is in the header before it."""
        path = self._paths[int(self._shard_N[i])]
        header = os.pread(self._file(int(self._shard_N[i])), 100, int(self._offset_N[i]) - 512)
        return f"Sample {header.split(bytes(1))[0].decode(errors='replace')} in {path}"
