"""The reference of a score: moments that a file stores, images, or both; and the writer of such a file."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from varlab.config import Config
from varlab.data.image.npz import IMAGES, NpzFile
from varlab.data.image.picture import PixelRules
from varlab.errors import VarlabError
from varlab.files import sha256
from varlab.json_file import read_json
from varlab.metrics.distribution.frechet import Moments
from varlab.score.image_set import ImageSet, NpzImages, image_set

__all__ = ["STORED", "Reference", "read_reference", "sidecar"]

STORED = {"mu": ("mu", "sigma"), "mu_s": ("mu_s", "sigma_s")}
"""The names of the ADM suite for the moments of features and of spatial features."""


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What samples are compared with.

    images: for precision, recall and KID, and for FID where there are no stored moments; None where a file has none.
    moments: those that a file stores, by the name of their mean. made_with: what its writer says of it; empty if nothing.
    """

    name: str
    hash: str
    images: ImageSet | None
    moments: dict[str, Moments] = field(default_factory=dict)
    made_with: Config = field(default_factory=dict)

    def to_json(self) -> Config:
        """What a protocol says of it. n: its images; 0 if it has moments alone."""
        stored = {"moments": sorted(self.moments)} if self.moments else {}
        return {"name": self.name, "hash": self.hash, "n": self.images.n if self.images else 0} | stored


def read_reference(path: Path, *, rules: PixelRules) -> Reference:
    """The reference in an ``.npz`` file or a folder of pictures. VarlabError if it is neither, or has other arrays."""
    if path.is_dir() or not path.is_file():
        images = image_set(path, rules=rules)
        return Reference(name=images.name, hash=images.hash, images=images)
    file = NpzFile(path)
    moments = {mean: _moments(file, mean, covariance) for mean, covariance in STORED.values() if mean in file}
    has_images = IMAGES in file
    if not moments and not has_images:
        raise VarlabError(
            f"{path} holds {', '.join(file.names) or 'nothing'}: a reference holds mu and sigma, {IMAGES}, or both."
        )
    npz = NpzImages(path) if has_images else None
    digest = npz.hash if npz else sha256(path)
    return Reference(name=path.name, hash=digest, images=npz, moments=moments, made_with=sidecar(path, digest))


def _moments(file: NpzFile, mean: str, covariance: str) -> Moments:
    mu_F, sigma_FF = (_numbers(file, name) for name in (mean, covariance))
    if mu_F.ndim != 1 or sigma_FF.shape != (len(mu_F), len(mu_F)):
        raise VarlabError(f"{file.path}: {mean} {list(mu_F.shape)} and {covariance} {list(sigma_FF.shape)} do not fit.")
    return Moments(torch.from_numpy(mu_F), torch.from_numpy(sigma_FF))


def _numbers(file: NpzFile, name: str) -> NDArray[np.float64]:
    array = file.array(name)
    if array.dtype.kind != "f" or not np.isfinite(array).all():
        raise VarlabError(f"{file.path}: {name} is not an array of finite numbers: write the file again.")
    return array.astype(np.float64)


def sidecar(path: Path, digest: str) -> Config:
    """What stands in the ``.json`` beside a file, if it was written for a file of this SHA-256; else nothing."""
    with suppress(FileNotFoundError, VarlabError):
        content = read_json(path.with_suffix(".json"))
        if isinstance(content, dict) and content.get("file_sha256") == digest:
            return content
    return {}
