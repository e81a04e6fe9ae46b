"""webdataset used as its documentation shows, with Pillow and torchvision; ``varlab bench`` compares with it."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import webdataset
from torchvision import transforms

from varlab.data import ShardDataModule
from varlab.data.image.crop import RandomResizedCrop

__all__ = ["plain_pipeline"]


def plain_pipeline(data: ShardDataModule, *, batch: int) -> Iterable[object]:
    """Batches (img_B3HW uint8, label_B) of the training shards in webdataset's shuffle, read in this process."""
    index, size = data.index, data.reader("train").size
    crop = data.crop
    scale, ratio = (crop.scale, crop.ratio) if isinstance(crop, RandomResizedCrop) else ((1.0, 1.0), (1.0, 1.0))
    steps = [transforms.RandomResizedCrop(size, scale=scale, ratio=ratio), transforms.PILToTensor()]
    picture = transforms.Compose(steps)
    urls = [str(index.storage.local(shard.file, shard.bytes)) for shard in index.splits["train"]]
    shards = webdataset.WebDataset(urls, shardshuffle=len(urls), empty_check=False)
    samples = shards.shuffle(1000).decode("pilrgb").to_tuple("jpg;png;jpeg;webp", "cls").map_tuple(picture, int)
    batches: Iterable[object] = samples.batched(batch, collation_fn=_collate)
    return batches


def _collate(samples: list[tuple[torch.Tensor, int]]) -> tuple[torch.Tensor, torch.Tensor]:
    images, labels = zip(*samples, strict=True)
    return torch.stack(images), torch.tensor(labels)
