"""Random samples in memory, so that a model's work is measured without shards."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from varlab.data import BaseDataModule
from varlab.types import Batch, DataInfo

__all__ = ["SyntheticData"]


class SyntheticData(BaseDataModule):
    """A split of one batch of noise: images, labels, condition images and boxes; with token maps, these in place of images.

    size: (H, W) of the images. tokens: (tokens of an image, size of the vocabulary), or None.
    """

    def __init__(
        self,
        *,
        size: tuple[int, int],
        classes: Sequence[str],
        batch: int,
        seed: int,
        tokens: tuple[int, int] | None = None,
    ):
        super().__init__(path="memory", batch=batch, eval_batch=batch, seed=seed, workers=0)
        self._info = DataInfo(
            path="memory",
            classes=tuple(classes),
            image_size=size,
            counts={"train": batch, "val": batch},
            hash="",
            source="random numbers in memory",
            condition="random images",
            boxes=True,
            tokens=None if tokens is None else "random tokens",
        )
        draw = torch.Generator().manual_seed(seed)
        shape = (batch, 3, *size)
        image = torch.randint(256, shape, generator=draw, dtype=torch.uint8)
        self._batch = Batch(
            img_u8_B3HW=image if tokens is None else image[:, :, :0, :0],
            label_B=torch.randint(len(classes), (batch,), generator=draw),
            position_B=torch.arange(batch),
            valid_B=torch.ones(batch, dtype=torch.bool),
            cond_u8_B3HW=torch.randint(256, shape, generator=draw, dtype=torch.uint8),
            box_B4=torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(batch, 1),
            tokens_BP=None if tokens is None else torch.randint(tokens[1], (batch, tokens[0]), generator=draw),
        )

    @property
    def info(self) -> DataInfo:
        """What shards of such samples would say."""
        return self._info

    def samples(self, split: str, index_N: Tensor | None = None) -> Batch:
        """Samples by number, the same in both splits."""
        return self._batch if index_N is None else self._batch.only(index_N)
