"""Pictures during training: samples beside real images, growing images, reconstructions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from varlab.data import BaseDataModule
from varlab.data.image.grid import poster
from varlab.sample.images import Growth
from varlab.score.image_sampler import ImageSampler, ValConditions, balanced_labels
from varlab.tokenizer import VQTokenizer
from varlab.types import to_float, to_uint8

_WIDEST = 16  # columns of a grid at most
_FRAMES = 8  # of growth, at most
_GROWN = 6  # images that are shown growing


def reconstructions(tokenizer: VQTokenizer, img_u8_N3HW: Tensor) -> Tensor:
    """img_u8_3HW: rows of images, each with the row of their reconstructions below it."""
    rec_B3HW, _ = tokenizer(to_float(img_u8_N3HW.to(tokenizer.last_layer.device)))
    return _rows(img_u8_N3HW.cpu(), to_uint8(rec_B3HW).cpu())


def _rows(*parts_u8_N3HW: Tensor) -> Tensor:
    """img_u8_3HW: a row of each part in turn; images that fill no whole row are left out."""
    count = len(parts_u8_N3HW[0])
    columns = min(_WIDEST, count)
    rows = [part[: count // columns * columns].unflatten(0, (-1, columns)) for part in parts_u8_N3HW]
    return poster(torch.stack(rows, 1).flatten(0, 2), columns=columns)


def columns_for(num_classes: int) -> int:
    """One column a class if they fit; a single class fills several."""
    return num_classes if 1 < num_classes <= _WIDEST else _WIDEST // 2


def samples(source: ImageSampler, data: BaseDataModule, *, count: int) -> dict[str, Tensor]:
    """samples and real (the same classes in the same places), and growth (rows: samples, columns: steps), all enlarged.

    With conditions: samples (rows: condition, sample, the real image of that condition) and growth.
    """
    made = {"samples": sample_grid(source, data, count=count)}
    if source.conditions is not None:
        return made | {"growth": growth(source, torch.arange(min(_GROWN, max(count, 1))))}
    num_classes = source.transformer.num_classes
    ids_N, columns, names = _layout(num_classes, data, count)
    real = real_images(data, balanced_labels(ids_N, num_classes))
    grown_N = torch.arange(min(_GROWN, columns))
    return made | {"real": poster(real, columns=columns, names=names), "growth": growth(source, grown_N)}


def sample_grid(source: ImageSampler, data: BaseDataModule, *, count: int) -> Tensor:
    """img_u8_3HW: samples, with a column for each class if they fit; beside their conditions if there are any."""
    if source.conditions is not None:
        return beside_conditions(source, source.conditions, torch.arange(max(count, 1)))
    ids_N, columns, names = _layout(source.transformer.num_classes, data, count)
    return poster(source.at(ids_N), columns=columns, names=names)


def _layout(num_classes: int, data: BaseDataModule, count: int) -> tuple[Tensor, int, Sequence[str]]:
    """(ids_N, columns, the name of each column) of whole rows of at most so many samples."""
    columns = columns_for(num_classes)
    names = data.info.classes if columns == num_classes else ()
    return torch.arange(max(count // columns, 1) * columns), columns, names


def beside_conditions(source: ImageSampler, conditions: ValConditions, ids_N: Tensor) -> Tensor:
    """img_u8_3HW: rows of conditions, of their samples, and of the images that the conditions were made from."""
    return _rows(conditions.shown(ids_N), source.at(ids_N), conditions.images(ids_N).img_u8_B3HW)


def shown_split(data: BaseDataModule) -> str:
    """The split of the real images in pictures: val, or train if there are no others."""
    return "val" if data.info.counts.get("val") else "train"


def real_images(data: BaseDataModule, label_N: Tensor) -> Tensor:
    """Val images of these classes, different ones as far as there are; black for a class without any."""
    split = shown_split(data)
    all_labels = data.labels(split)
    images = torch.zeros(len(label_N), 3, *data.info.image_size, dtype=torch.uint8)
    for label in label_N.unique():
        rows, places = (all_labels == label).nonzero()[:, 0], (label_N == label).nonzero()[:, 0]
        if len(rows):
            images[places] = data.images(split, rows[torch.arange(len(places)) % len(rows)])
    return images


def growth(source: ImageSampler, ids_N: Tensor) -> Tensor:
    """img_u8_3HW: each sample (a row) over the steps of its order, from left to right."""
    watch = Growth(order=source.order, tokenizer=source.tokenizer, frames=_FRAMES)
    source.maps(ids_N, watch)
    frames = watch.images()
    return poster(to_uint8(frames).flatten(0, 1).cpu(), columns=frames.shape[1])
