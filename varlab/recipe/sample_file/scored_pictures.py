"""The pictures that an evaluation leaves in the folder of a generator: what was scored, and what is near to it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from varlab.data import BaseDataModule
from varlab.data.image.grid import write_png
from varlab.files import remove_drafts
from varlab.metrics.comparison import Neighbours
from varlab.recipe.plans.training_pictures import sample_grid
from varlab.score.image_sampler import ImageSampler
from varlab.score.neighbour_strip import neighbour_strip

__all__ = ["draw_neighbours", "draw_samples"]

_SHOWN = 32  # samples of the picture


def draw_neighbours(path: Path, found: Neighbours, *, source: ImageSampler, data: BaseDataModule) -> None:
    """Write ``neighbour_strip`` as PNG."""
    remove_drafts(path.parent, of=f"{path.name}.*")  # of a killed evaluation
    write_png(path, neighbour_strip(found, source=source, data=data))


def draw_samples(path: Path, *, source: ImageSampler, data: BaseDataModule) -> Path:
    """Write a grid of samples as PNG, with a column for each class if they fit, whatever labels were scored."""
    remove_drafts(path.parent, of=f"{path.name}.*")
    write_png(path, sample_grid(replace(source, label_N=None), data, count=_SHOWN))
    return path
