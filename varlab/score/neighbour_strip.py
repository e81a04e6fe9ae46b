"""A picture of samples, each above its nearest training images, with the distances."""

from __future__ import annotations

import torch
from torch import Tensor

from varlab.data import BaseDataModule
from varlab.data.image.grid import enlarged, grid, headed
from varlab.metrics.comparison import Neighbours
from varlab.score.image_sampler import ImageSampler

__all__ = ["neighbour_strip"]


def neighbour_strip(found: Neighbours, *, source: ImageSampler, data: BaseDataModule) -> Tensor:
    """img_u8_3HW: a column for each sample, drawn again, with its nearest training images below it, the nearest first.

    Above each column is the distance to the nearest one / that of the val image of the same rank.
    """
    samples = torch.cat([img_u8.cpu() for img_u8, _ in source.images(found.row_S)])
    columns = len(found.row_S)
    rows = found.train_SK.T.reshape(-1).cpu()
    picture = grid(torch.cat([samples, data.images("train", rows)]), columns=columns)
    pairs = zip(found.distance_SK[:, 0].tolist(), found.val_S.tolist(), strict=True)
    return headed(enlarged(picture, height=samples.shape[-2]), [f"{of:.3g} / {val:.3g}" for of, val in pairs])
