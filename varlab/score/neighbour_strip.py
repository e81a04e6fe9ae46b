"""Samples with their nearest training images: how they are found, and a picture of them with the distances."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from varlab.data.image.grid import enlarged, grid, headed
from varlab.metrics.comparison import Neighbours, nearest_distance, nearest_scores, neighbours
from varlab.metrics.features import Rows
from varlab.tasks.distributed import collectives

__all__ = ["find_neighbours", "neighbour_strip"]

_SHOWN, _NEAREST = 8, 3  # samples that are shown with so many training images each


def find_neighbours(
    fake: Rows, train: Rows, val_NF: Tensor | None, *, fake_row_N: Tensor, train_row_N: Tensor
) -> tuple[Neighbours, dict[str, float]]:
    """Samples with the numbers of their nearest training images, and ``nearest_scores`` where there are held-out images.

    fake, train, val_NF: features of all ranks, rank by rank. fake_row_N, train_row_N: the images' numbers on this rank.
    """
    fake_row_N, train_row_N = (collectives.gather_uneven(row_N) for row_N in (fake_row_N, train_row_N))
    # in the order of one rank, as neighbours at equal distances are taken in their order
    fake_NF, train_NF = fake.ordered(fake_row_N.argsort()), train.ordered(train_row_N.argsort())
    fake_N = nearest_distance(fake_NF, train_NF)
    val_M = None if val_NF is None else nearest_distance(val_NF, train_NF)
    found = neighbours(fake_NF, train_NF, fake_N=fake_N, val_M=val_M, shown=_SHOWN, count=_NEAREST)
    row_S, train_SK = fake_row_N.sort().values[found.row_S], train_row_N.sort().values[found.train_SK]
    scores = {} if val_M is None else nearest_scores(fake_N, val_M, train_NF)
    return found._replace(row_S=row_S.cpu(), train_SK=train_SK.cpu()), scores


def neighbour_strip(
    found: Neighbours, *, samples: Callable[[Tensor], Tensor], train: Callable[[Tensor], Tensor]
) -> Tensor:
    """img_u8_3HW: a column for each sample, with its nearest training images below it, the nearest first.

    Above each column is the distance to the nearest one, and / that of the val image of the same rank if there is one.
    samples, train: img_u8_N3HW of images by number.
    """
    images = torch.cat([samples(found.row_S), train(found.train_SK.T.reshape(-1))])
    texts = [f"{distance:.3g}" for distance in found.distance_SK[:, 0].tolist()]
    if found.val_S is not None:
        texts = [f"{text} / {val:.3g}" for text, val in zip(texts, found.val_S.tolist(), strict=True)]
    picture = grid(images, columns=len(found.row_S))
    return headed(enlarged(picture, height=images.shape[-2]), texts)
