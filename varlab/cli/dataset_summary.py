"""The summary page of a shard set: ``summary.html`` beside its shards."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from varlab.data.format.duplicates import Duplicates, find_duplicates
from varlab.data.format.index import SPLITS, Index
from varlab.data.image.depth import describe_depths
from varlab.data.image.grid import grid
from varlab.data.read.reader import ShardReader
from varlab.report.page.dataset import DatasetFacts, write_dataset_page

__all__ = ["class_counts", "describe_steps", "summarise"]

logger = logging.getLogger(__name__)

_TILE = 96  # pixels of an image on the contact sheet, at most
_MOST_PIXELS = 1 << 62  # the index has its own limit


def summarise(
    index: Index, path: Path, *, bad: Sequence[tuple[str, str, str]], sheet: int, notes: Sequence[str] = ()
) -> Duplicates:
    """Write the page of an index's shards; log and return the images that occur more than once.

    sheet: rows and columns of the contact sheet, 0 for none. notes: sentences about what was passed over, decided or done.
    """
    duplicates = find_duplicates(index)
    if str(duplicates):
        logger.warning("%s: %s", index.path, duplicates)
    counts = class_counts(index)
    picture, caption = _sheet(index, sheet) if sheet else (None, "")
    info, size = index.info, index.image_size
    shards = [shard for of in index.splits.values() for shard in of]
    facts = [
        ("path", str(Path(index.path).resolve())),
        ("source", info.source),
        ("image size", "various" if size is None else f"{size[0]}×{size[1]} (height × width)"),
        ("shards", f"{len(shards)}, {sum(s.bytes for s in shards) / 1e6:,.1f} MB"),
        *([("second image", info.condition)] if info.condition else []),
        *([("decoding", describe_steps(index))] if index.steps else []),
        *([("left out", ", ".join(f"{n} {kind}" for kind, n in index.faults.items()))] if index.faults else []),
        *(("note", note) for note in notes),
        *([("duplicates", str(duplicates))] if str(duplicates) else []),
        ("hash", index.hash),
    ]
    n = ", ".join(f"{count:,} {split}" for split, count in info.counts.items())
    write_dataset_page(
        path,
        DatasetFacts(
            title=Path(index.path).resolve().name,
            headline=f"{n} images in {len(index.classes)} class{'es' if len(index.classes) != 1 else ''}.",
            facts=facts,
            counts=counts,
            bad=bad,
            sheet=picture,
            caption=caption,
        ),
    )
    return duplicates


def describe_steps(index: Index) -> str:
    """What was done to how many images on the way to bytes, and the depths by which they were scaled; empty for nothing."""
    steps = ", ".join(f"{count:,} {step}" for step, count in index.steps.items())
    return f"{steps} ({describe_depths(index.depth)})" if index.depth else steps


def class_counts(index: Index) -> dict[str, dict[str, int]]:
    """The number of samples of each class, by split."""
    counts = {}
    for split in index.tables:
        count_K = np.bincount(index.table(split)["label"], minlength=len(index.classes))
        counts[split] = dict(zip(index.classes, count_K.tolist(), strict=False))
    return counts


def _sheet(index: Index, side: int) -> tuple[bytes, str]:
    """A PNG of training images, a row for each class as far as there is room, and its caption."""
    size = index.image_size
    small = (_TILE, _TILE) if size is None or max(size) > _TILE else size
    reader = ShardReader(index=index, split=SPLITS[0], cache_bytes=0, most_pixels=_MOST_PIXELS, size=small)
    label_N = reader.label_N.numpy()
    rows = [np.flatnonzero(label_N == c)[:side] for c in np.unique(label_N)[:side]]
    chosen = [i for row in rows for i in row.tolist()]
    if len(rows) < side:
        # The remaining rows show the first images of any class.
        chosen += [i for i in range(min(len(label_N), side * side)) if i not in set(chosen)]
    read = reader.read(torch.tensor(chosen[: side * side]))
    img_3HW = grid(read.img_B3HW.contiguous(), columns=min(side, len(chosen)))
    buffer = io.BytesIO()
    Image.fromarray(img_3HW.permute(1, 2, 0).numpy()).save(buffer, format="PNG")
    return buffer.getvalue(), f"{min(len(chosen), side * side)} of the training images"
