"""Sets of images that are scored or compared with: an ``.npz`` file, a folder of pictures, a split of shards, a generator."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Protocol, TypeAlias, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from varlab.data import BaseDataModule
from varlab.data.folders.picture_files import is_picture, is_system
from varlab.data.image.npz import LABELS, NpzFile
from varlab.data.image.picture import PixelRules, read_named_picture
from varlab.errors import VarlabError
from varlab.files import sha256
from varlab.metrics.extractors import Extractor
from varlab.score.image_sampler import ImageSampler
from varlab.tasks.distributed import collectives
from varlab.types import Batch, without_padding

__all__ = [
    "FolderImages",
    "FollowedImages",
    "ImageSet",
    "NpzImages",
    "Numbered",
    "Progress",
    "SampledImages",
    "ShardImages",
    "features_of",
    "followed",
    "gathered_features",
    "image_set",
    "outputs_of",
    "rank_share",
]


T = TypeVar("T")
Progress: TypeAlias = Callable[[int, int, str], None]
"""Called with the images that are done, all images, and what is done with them."""


class Numbered(NamedTuple):
    """A batch of images with their numbers in the set, and their labels where these are known."""

    img_u8_B3HW: Tensor
    row_B: Tensor
    label_B: Tensor | None


class ImageSet(Protocol):
    """Images of one size, in an order. name: for people. hash: of all that decides the images.

    batches: those of this rank, at least one, which may be empty; over all ranks each image is in one of them.
    at: img_u8_N3HW of the images with these numbers, on the CPU.
    """

    name: str
    hash: str
    n: int
    image_size: tuple[int, int]

    def batches(self, batch: int) -> Iterable[Numbered]: ...

    def at(self, row_N: Tensor) -> Tensor: ...


class NpzImages:
    """The images ``arr_0`` of a file, with the labels ``arr_1`` if it has them."""

    def __init__(self, path: Path):
        self._file = NpzFile(path)
        self.n, height, width = self._file.require_images()
        self.image_size, self.name, self.hash = (height, width), path.name, sha256(path)
        self.label_N: Tensor | None = None
        if LABELS in self._file and self._file.shape(LABELS) == (self.n,):
            label_N = self._file.array(LABELS)
            self.label_N = torch.from_numpy(label_N.astype(np.int64)) if label_N.dtype.kind in "iu" else None

    def batches(self, batch: int) -> Iterator[Numbered]:
        """The images in the file's order."""
        parts = collectives.share(self.n, batch)
        for part, img_BHW3 in zip(parts, self._file.rows(parts), strict=True):
            row_B = torch.arange(part.start, part.stop)
            label_B = None if self.label_N is None else self.label_N[row_B]
            yield Numbered(torch.from_numpy(img_BHW3).permute(0, 3, 1, 2), row_B, label_B)

    def at(self, row_N: Tensor) -> Tensor:
        """The file is read once, up to the last of them."""
        rows, place_N = row_N.cpu().unique(return_inverse=True)
        images = [torch.from_numpy(img_1HW3) for img_1HW3 in self._file.rows(range(r, r + 1) for r in rows.tolist())]
        return torch.cat(images).permute(0, 3, 1, 2)[place_N]


class FolderImages:
    """The pictures in a folder, in the order of their names, as they are: no resizing. VarlabError if their sizes differ."""

    def __init__(self, path: Path, rules: PixelRules):
        self._rules = rules
        self._files = sorted(f for f in path.iterdir() if not is_system(f.name) and f.is_file() and is_picture(f))
        if not self._files:
            raise VarlabError(f"{path} holds no pictures: name an .npz file, a folder of pictures, or one of shards.")
        self.n, self.name = len(self._files), path.name
        _, height, width = self._pixels(self._files[0]).shape
        self.image_size = (height, width)
        digests = [f"{file.name} {sha256(file)}" for file in self._files]
        self.hash = hashlib.sha256("\n".join(digests).encode(errors="backslashreplace")).hexdigest()

    def _pixels(self, file: Path) -> Tensor:
        return torch.from_numpy(read_named_picture(file, self._rules, "samples").img_HW3.copy()).permute(2, 0, 1)

    def batches(self, batch: int) -> Iterator[Numbered]:
        """The pictures, decoded batch by batch."""
        for part in collectives.share(self.n, batch):
            files = self._files[part.start : part.stop]
            images = [self._pixels(file) for file in files]
            for file, img_3HW in zip(files, images, strict=True):
                if tuple(img_3HW.shape[1:]) != tuple(self.image_size):
                    raise VarlabError(
                        f"{file} has {img_3HW.shape[1]}×{img_3HW.shape[2]} pixels, {self._files[0].name} has "
                        f"{self.image_size[0]}×{self.image_size[1]}: bring all pictures to one size."
                    )
            img_u8_B3HW = torch.stack(images) if images else _no_images(self).img_u8_B3HW
            yield Numbered(img_u8_B3HW, torch.arange(part.start, part.stop), None)

    def at(self, row_N: Tensor) -> Tensor:
        """The pictures, decoded."""
        return torch.stack([self._pixels(self._files[row]) for row in row_N.tolist()])


class ShardImages:
    """A split of a shard set, in its order."""

    def __init__(self, data: BaseDataModule, split: str):
        self._data, self._split = data, split
        if not data.info.counts.get(split):
            raise VarlabError(f"{data.path} has no images in the split {split}: name another with split=.")
        self.n, self.hash, self.image_size = data.info.counts[split], data.info.hash, data.info.image_size
        self.name = f"{data.info.source}/{split}"

    def batches(self, batch: int) -> Iterator[Numbered]:
        """The images that can be read."""
        some = False
        for images in rank_share(self._data, self._split, batch=batch, device=torch.device("cpu")):
            some = True
            yield Numbered(images.img_u8_B3HW, images.position_B, images.label_B)
        if not some:
            yield _no_images(self)

    def at(self, row_N: Tensor) -> Tensor:
        """As they were packed."""
        return self._data.images(self._split, row_N.cpu())


def rank_share(data: BaseDataModule, split: str, *, batch: int, device: torch.device) -> Iterator[Batch]:
    """This rank's images of a split, without padding, on a device. batch: of a rank; there may be no batch."""
    rank, world = collectives.rank(), collectives.world_size()
    return without_padding(data.eval_loader(split, rank, world, batch * world), device)


class SampledImages:
    """The first n samples of a generator. name: of its run. hash: of its weights."""

    def __init__(self, source: ImageSampler, *, n: int, name: str, hash: str, image_size: tuple[int, int]):
        self._source, self.n, self.name, self.hash, self.image_size = source, n, name, hash, image_size

    def batches(self, batch: int) -> Iterator[Numbered]:
        """The samples in the order of their numbers."""
        ids_N = torch.cat([torch.arange(part.start, part.stop) for part in collectives.share(self.n, batch)])
        if not len(ids_N):
            yield _no_images(self)
            return
        for ids_B, (img_u8_B3HW, label_B) in zip(
            ids_N.split(self._source.batch), self._source.images(ids_N), strict=True
        ):
            yield Numbered(img_u8_B3HW, ids_B, label_B)

    def at(self, row_N: Tensor) -> Tensor:
        """The samples, drawn again."""
        return self._source.at(row_N)


def _no_images(like: ImageSet) -> Numbered:
    """An empty batch, with labels."""
    none_B = torch.zeros(0, dtype=torch.int64)
    return Numbered(torch.zeros(0, 3, *like.image_size, dtype=torch.uint8), none_B, none_B)


def image_set(path: Path, *, rules: PixelRules) -> ImageSet:
    """The images of a file or a folder of pictures. VarlabError if it is neither."""
    if path.is_dir():
        return FolderImages(path, rules)
    if not path.is_file():
        raise VarlabError(f"There is no file and no folder {path}: correct its path.")
    return NpzImages(path)


class FollowedImages:
    """The same images, each batch of which is reported once it is done. what: is done with them."""

    def __init__(self, images: ImageSet, what: str, progress: Progress):
        self._images, self._what, self._progress = images, what, progress
        self.name, self.hash, self.n, self.image_size = images.name, images.hash, images.n, images.image_size

    def batches(self, batch: int) -> Iterator[Numbered]:
        """Those of the images."""
        batches = self._images.batches(batch)
        return followed(batches, lambda numbered: len(numbered.row_B), self.n, self._what, self._progress)

    def at(self, row_N: Tensor) -> Tensor:
        """Those of the images, without a report."""
        return self._images.at(row_N)


def followed(batches: Iterable[T], size: Callable[[T], int], total: int, what: str, progress: Progress) -> Iterator[T]:
    """The batches of this rank, each reported once it is done. size: images of a batch. total: images of all ranks."""
    done, world = 0, collectives.world_size()
    progress(0, total, what)
    for batch in batches:
        yield batch
        done += size(batch)
        progress(min(done * world, total), total, what)


def features_of(
    images: ImageSet, extract: Extractor, *, batch: int, device: torch.device | None = None
) -> Iterator[tuple[Numbered, dict[str, Tensor]]]:
    """Each batch of this rank with its outputs. device: of these; None for that of the extractor's weights."""
    device = device or next((p.device for p in extract.parameters()), torch.device("cpu"))
    for numbered in images.batches(batch):
        known = outputs_of(extract, numbered.img_u8_B3HW.to(device), batch=min(batch, images.n))
        row_B = numbered.row_B.to(device)
        label_B = None if numbered.label_B is None else numbered.label_B.to(device)
        yield Numbered(numbered.img_u8_B3HW, row_B, label_B), known


def gathered_features(images: ImageSet, extract: Extractor, *, batch: int) -> tuple[Tensor, Tensor | None]:
    """features_NF, and label_N where all are known, of all ranks, on the CPU."""
    features, labels = [], []
    for numbered, known in features_of(images, extract, batch=batch):
        features.append(known["features_BF"])
        labels += [] if numbered.label_B is None else [numbered.label_B]
    label_N = collectives.gather_uneven(torch.cat(labels)).cpu() if len(labels) == len(features) else None
    return collectives.gather_uneven(torch.cat(features)).cpu(), label_N


def outputs_of(extract: Extractor, img_u8_B3HW: Tensor, *, batch: int) -> dict[str, Tensor]:
    """The outputs of some images. The extractor sees batches of one size: others are filled up with black images.

    So the last bits of an image's features do not depend on how many others are beside it.
    """
    count = len(img_u8_B3HW)
    filled = pad(img_u8_B3HW, (0, 0) * 3 + (0, batch - count)) if count < batch else img_u8_B3HW
    outputs = extract.outputs(filled.contiguous())  # last bits depend on the layout, too
    return {name: value[:count] for name, value in outputs.items()}
