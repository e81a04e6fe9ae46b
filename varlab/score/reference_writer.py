"""The writer of a reference: moments of all images of a set, and some of the images, in the names of the ADM suite."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from varlab.data.image.npz import IMAGES, write_npz
from varlab.metrics.distribution.frechet import FID
from varlab.metrics.extractors import Extractor
from varlab.rng import Rng
from varlab.score.image_set import ImageSet, features_of
from varlab.score.reference import STORED
from varlab.types import VarlabError

__all__ = ["write_reference"]


def write_reference(path: Path, *, images: ImageSet, extractor: Extractor, kept: int, seed: int, batch: int) -> int:
    """Write the file; return how many images it holds: ``kept`` drawn by the seed, all if there are not as many.

    The moments are those of all images. A second pass writes the images, so that memory holds a batch at a time.
    """
    means = {"mu": ("features_BF", extractor.num_features), "mu_s": ("spatial_BS", extractor.num_spatial)}
    tallies = {mean: (of, FID(num_features=dim)) for mean, (of, dim) in means.items() if dim is not None}
    seen: list[int] = []
    for numbered, known in features_of(images, extractor, batch=batch):
        seen += numbered.row_B.tolist()
        for of, tally in tallies.values():
            tally.to(known[of].device).update(known[of], real=True)
    if len(seen) < 2:
        raise VarlabError(f"A covariance needs two images or more, not {len(seen)}.")
    chosen = Rng(seed).stream("reference").permutation(len(seen))[0, :kept].sort().values
    rows = {seen[i] for i in chosen.tolist()}
    arrays: dict[str, NDArray[np.generic]] = {}
    for mean, (_, tally) in tallies.items():
        for name, part in zip(STORED[mean], tally.moments(real=True), strict=True):
            arrays[name] = part.cpu().numpy()

    def pieces() -> Iterator[NDArray[np.generic]]:
        for numbered in images.batches(batch):
            keep_B = torch.tensor([row in rows for row in numbered.row_B.tolist()], dtype=torch.bool)
            if keep_B.any():
                yield numbered.img_u8_B3HW[keep_B].permute(0, 2, 3, 1).contiguous().numpy()

    write_npz(path, {**arrays, **({IMAGES: ((len(rows), *images.image_size, 3), pieces())} if rows else {})})
    return len(rows)
