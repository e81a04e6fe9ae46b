"""Small shard sets of real and of made images, packed once a session."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from varlab.data.image.augment import Augment
from varlab.data.pack.packer import pack
from varlab.data.pack.sources.base import SourceSample
from varlab.data.pack.sources.digits import Digits
from varlab.data.shard_module import ShardDataModule


class Made:
    """A source whose images tell their split and number: pixel values are a hash of both."""

    classes = ("a", "b", "c")
    image_size = (8, 8)

    def __init__(self, *, train: int, val: int):
        self._n = {"train": train, "val": val}

    def describe(self) -> dict[str, Any]:
        return {"name": "made", **self._n}

    def entries(self, split: str) -> range:
        return range(self._n[split])

    def load(self, split: str, entry: int) -> SourceSample:
        noise = np.random.default_rng([len(split), entry]).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        return SourceSample(key=f"{entry:04d}", label=entry % 3, image=Image.fromarray(noise))


def _digits(**changes: Any) -> Digits:
    return Digits(**{"size": 16, "resample": "bicubic", "val_fraction": 0.2, "seed": 0, **changes})


def _module(path: Path, **changes: Any) -> ShardDataModule:
    settings: dict[str, Any] = {"batch": 8, "eval_batch": 8, "seed": 3, "workers": 0, "cache_bytes": 1 << 20}
    return ShardDataModule(path=path, **{**settings, "augment": Augment(flip=True, crop=1.25, noise=0.0), **changes})


def _files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="session")
def make_digits() -> Callable[..., Digits]:
    """The digits source, by default as the demo has it."""
    return _digits


@pytest.fixture(scope="session")
def make_images() -> type[Made]:
    """A source of 8×8 noise in three classes: Made(train=n, val=n)."""
    return Made


@pytest.fixture(scope="session")
def make_module() -> Callable[..., ShardDataModule]:
    """A data module on a folder; keywords change its settings."""
    return _module


@pytest.fixture(scope="session")
def contents() -> Callable[[Path], dict[str, bytes]]:
    """Every file of a folder with its bytes."""
    return _files


@pytest.fixture(scope="session")
def digits_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    pack(_digits(), folder, shard_size=500)
    return folder


@pytest.fixture(scope="session")
def made_set(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """37 training and 21 val images in shards of 10."""
    folder = tmp_path_factory.mktemp("made")
    pack(Made(train=37, val=21), folder, shard_size=10)
    return folder
