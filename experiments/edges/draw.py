"""Draw two pictures: ``python draw.py RUN SHARDS FOLDER`` writes FOLDER/edges.png and FOLDER/large.png.

edges.png: one column for each held-out crop, with its edge map, three samples and the real photograph.
large.png: one column for each photograph, at 3×2 times the trained size, with the edges of its held-out part, a sample by a
sliding window and the real photograph.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

import varlab
from varlab.data import ShardDataModule
from varlab.data.image.augment import Augment
from varlab.data.image.grid import grid
from varlab.data.pack.conditions import Edges
from varlab.data.pack.sources.photos import Photos
from varlab.model import Model
from varlab.types import to_float, to_uint8

EDGES = Edges(sigma=1.5, low=0.04, high=0.1)  # the settings that the shards were packed with
SETTINGS = {"top_k": 100, "temperature": 0.95}
COLUMNS = 12
LARGE = (192, 128)  # three times and twice the trained size
PHOTOS = ("brick", "coins", "coffee", "motorcycle_left", "chelsea", "text")


def tensor(image: Image.Image) -> Tensor:
    """img_u8_13HW."""
    return torch.from_numpy(np.asarray(image.convert("RGB")).copy()).permute(2, 0, 1)[None]


def small(model: Model, shards: Path) -> Tensor:
    """img_u8_3HW: rows of edges, samples, the real images."""
    keep = Augment(flip=False, crop=1.0, noise=0.0)
    data = ShardDataModule(path=shards, batch=1, eval_batch=1, seed=0, workers=0, augment=keep, cache_bytes=0)
    index_N = torch.arange(COLUMNS) + 5 * COLUMNS
    batch = data.samples("val", index_N)
    assert batch.cond_u8_B3HW is not None
    cond = to_float(batch.cond_u8_B3HW)
    rows = [batch.cond_u8_B3HW]
    rows += [to_uint8(model.sample(batch.label_B, seed=s, cond_img_B3HW=cond, **SETTINGS)) for s in range(3)]
    return grid(torch.cat([*rows, batch.img_u8_B3HW]), columns=COLUMNS)


def large(model: Model, photo: str) -> Tensor:
    """img_u8_33HW: edges, sample and real image of the part of a photograph that no training crop touched."""
    source = Photos(
        photos=[photo], size=64, train_crops=1, val_crops=1, zoom=1.0, resample="lanczos", val_fraction=0.25, seed=0
    )
    part, (height, width) = source.region(photo, "val"), LARGE
    reduce = min(part.width / width, part.height / height)
    cut = part.crop((0, 0, int(width * reduce), int(height * reduce))).resize((width, height), Image.Resampling.LANCZOS)
    edges = tensor(EDGES.of(cut))
    label = model.classes.index(photo)
    made = model.sample_large([label], size=LARGE, seed=0, cond_img_B3HW=to_float(edges), **SETTINGS)
    return torch.cat([edges, to_uint8(made), tensor(cut)])


def main(run: str, shards: str, folder: str) -> None:
    """Write both pictures."""
    torch.set_num_threads(1)
    model = varlab.load(run)
    rows = torch.stack([large(model, photo) for photo in PHOTOS], 1).flatten(0, 1)
    for name, picture in (("edges", small(model, Path(shards))), ("large", grid(rows, columns=len(PHOTOS)))):
        Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy()).save(Path(folder) / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
