"""The pictures that an evaluation leaves in the folder of a generator: what was scored, and what is near to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from torch import Tensor

from varlab.data import BaseDataModule
from varlab.data.image.grid import poster, write_png
from varlab.files import remove_drafts
from varlab.metrics.comparison import Neighbours, evenly
from varlab.recipe.plans.training_pictures import sample_grid
from varlab.score.image_sampler import ImageSampler
from varlab.score.image_set import ImageSet
from varlab.score.neighbour_strip import neighbour_strip

__all__ = ["draw_neighbours", "draw_samples", "draw_set"]

_SHOWN, _COLUMNS = 64, 8  # samples of the picture, as many as a training shows


def draw_neighbours(
    path: Path, found: Neighbours, *, samples: Callable[[Tensor], Tensor], train: Callable[[Tensor], Tensor]
) -> None:
    """Write ``neighbour_strip`` as PNG."""
    _write(path, neighbour_strip(found, samples=samples, train=train))


def draw_samples(path: Path, *, source: ImageSampler, data: BaseDataModule) -> Path:
    """Write a grid of samples as PNG, with a column for each class if they fit, whatever labels were scored."""
    _write(path, sample_grid(replace(source, label_N=None), data, count=_SHOWN))
    return path


def draw_set(
    folder: Path, protocol: str, *, samples: ImageSet, real: ImageSet | None, found: Neighbours | None, of_a_run: bool
) -> None:
    """Write a grid of samples from all over a set, one of the reference's images, and the strip of neighbours.

    of_a_run: the folder is that of a training, whose own real images stay.
    """
    for name, images in ((f"scored/{protocol}", samples), ("real", None if of_a_run else real)):
        if images is not None:
            row_N = evenly(images.n, min(_SHOWN, images.n))
            _write(folder / f"{name}.png", poster(images.at(row_N), columns=_COLUMNS))
    if found is not None and real is not None:
        draw_neighbours(folder / "neighbours" / f"{protocol}.png", found, samples=samples.at, train=real.at)


def _write(path: Path, img_u8_3HW: Tensor) -> None:
    remove_drafts(path.parent, of=f"{path.name}.*")  # of a killed evaluation
    write_png(path, img_u8_3HW)
