"""What a training sees of a shard set."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path

from tests.fuzz.judges import is_of, judge_pixels, read_set
from tests.fuzz.worlds import World

__all__ = ["judge_reader"]

_SIZE = 16
_MODULES = ("varlab.data.shard_module", "varlab.data.datamodule")
"""Where the data module is, in this version and in one of before."""


def judge_reader(world: World, folder: Path) -> Iterator[str]:
    """Compare each image and label that training sees with what the owner has."""
    import torch

    rows = read_set(folder)
    data = _data_module(folder)
    for split in ("train", "val"):
        here = [row for row in rows if row.split == split]
        if not here:
            continue
        batch = data.samples(split, torch.arange(len(here)))
        images = batch.img_u8_B3HW.permute(0, 2, 3, 1).numpy()
        if batch.faults:
            yield f"pixels: training finds {batch.faults[:2]}"
        for row, seen, label in zip(here, images, batch.label_B.tolist(), strict=True):
            member = next((one for one in world.members if is_of(row, one)), None)
            if member is None or member.picture is None:
                continue
            yield from judge_pixels(world, member, seen, _SIZE, "in training")
            if row.label is not None and data.info.classes[label] != row.label:
                yield f"label: training sees {member.stem} as {data.info.classes[label]}"


def _data_module(folder: Path):  # type: ignore[no-untyped-def]
    for name in _MODULES:
        try:
            module = importlib.import_module(name)
        except ImportError:
            continue
        augment = importlib.import_module("varlab.data.image.augment" if name == _MODULES[0] else "varlab.data.augment")
        return module.ShardDataModule(
            path=folder, batch=4, eval_batch=4, seed=0, workers=0, cache_bytes=0, size=_SIZE, max_bad=0.9,
            augment=augment.Augment(flip=False, crop=1.0, noise=0.0),
        )  # fmt: skip
    raise ImportError("there is no data module")
