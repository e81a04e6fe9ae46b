"""A look at shards as they are: headers, hashes, images, and whatever is wrong with them."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader, Dataset

from varlab.data.faults import BadSampleError
from varlab.data.format.tar import Place, Scan, scan
from varlab.data.image.decode import decode, header
from varlab.errors import VarlabError
from varlab.types import Fault

__all__ = ["Looked", "Progress", "Settings", "look_at_all", "split_files", "split_of"]

Progress = Callable[[int, int], None]
"""Told how many shards are looked at, and how many there are."""


@dataclass(frozen=True)
class Settings:
    """How shards are looked at.

    label: where a sample's label is told: ``cls``, ``json:FIELD``, ``none`` (all are one class), or ``auto``. classes: their
    names in label order, or None for what is found. decode: whether every image is decoded. most_pixels: larger images are
    bad. size: (H, W) that all images must have, or None.
    """

    label: str
    classes: tuple[str, ...] | None
    decode: bool
    most_pixels: int
    size: tuple[int, int] | None


@dataclass
class Looked:
    """One shard as it is. sizes: the (H, W) found among its images."""

    file: str
    bytes: int
    sha256: str
    scan: Scan
    sizes: set[tuple[int, int]]


def split_files(folder: Path, patterns: Mapping[str, str], *, ending: str = "tar") -> dict[str, list[str]]:
    """The files of that ending below a folder by split, in order of name; the first pattern that matches takes a file.

    Raises:
        VarlabError: none is there, or one is taken by no split.
    """
    files = sorted(str(p.relative_to(folder)) for p in folder.rglob(f"*.{ending}") if ".packing" not in p.parts)
    if not files:
        raise VarlabError(f"{folder} holds no *.{ending}: give the folder that they lie in.")
    found: dict[str, list[str]] = {split: [] for split in patterns}
    for file in files:
        found[split_of(folder, file, patterns)].append(file)
    return found


def split_of(folder: Path, file: str, patterns: Mapping[str, str]) -> str:
    """The first split with a pattern (several with | between them) that matches the file's path below the folder.

    Raises:
        VarlabError: there is none.
    """
    for split, pattern in patterns.items():
        if any(fnmatch.fnmatch(file, p) for p in pattern.split("|")):
            return split
    raise VarlabError(f"{folder / file} belongs to no split: set split.train or split.val to match it.")


def look_at_all(
    folder: Path, splits: Mapping[str, Sequence[str]], settings: Settings, workers: int, progress: Progress | None
) -> dict[str, list[Looked]]:
    """The shards of each split, by so many processes."""
    looked: dict[str, list[Looked]] = {split: [] for split in splits}
    total, done = sum(map(len, splits.values())), 0
    for split, files in splits.items():
        for shard in look(folder, files, settings, min(workers, len(files))):
            looked[split].append(shard)
            done += 1
            if progress is not None:
                progress(done, total)
    return looked


def look(folder: Path, files: Sequence[str], settings: Settings, workers: int) -> Iterator[Looked]:
    """The shards one after another, by so many processes."""
    looking = _Looking(folder, files, settings)
    if not workers:
        yield from (looking[i] for i in range(len(looking)))
        return
    yield from DataLoader(looking, batch_size=None, num_workers=workers, multiprocessing_context="fork")


class _Looking(Dataset[Looked]):
    """Item i is the i-th shard, looked at."""

    def __init__(self, folder: Path, files: Sequence[str], settings: Settings):
        self._folder, self._files, self._settings = folder, files, settings

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i: int) -> Looked:
        path = self._folder / self._files[i]
        found = scan(path, label=self._settings.label)
        found.faults = [replace(fault, shard=self._files[i]) for fault in found.faults]
        sizes = set[tuple[int, int]]()
        if not path.is_file():
            return Looked(self._files[i], 0, "", found, sizes)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            found.places = [p for p in found.places if self._sound(file, self._files[i], p, found.faults, sizes)]
        return Looked(self._files[i], path.stat().st_size, digest, found, sizes)

    def _sound(self, file: Any, name: str, place: Place, faults: list[Fault], sizes: set[tuple[int, int]]) -> bool:
        """Whether its images can be read; else a fault is added."""
        file.seek(place.span[0])
        encoded = file.read(place.span[1])
        try:
            size = header(encoded, place.format)
            if size[0] * size[1] > self._settings.most_pixels:
                raise BadSampleError("too_large", f"{size[1]}×{size[0]} pixels")
            if self._settings.size is not None and size != self._settings.size:
                raise BadSampleError("wrong_size", f"{size[1]}×{size[0]}, not {self._settings.size[::-1]}")
            if self._settings.decode:
                decode(encoded, place.format, most_pixels=self._settings.most_pixels)
                if place.condition is not None:
                    file.seek(place.condition[0][0])
                    decode(file.read(place.condition[0][1]), "PNG", most_pixels=self._settings.most_pixels)
        except BadSampleError as bad:
            faults.append(Fault(bad.kind, name, place.key, bad.detail))
            return False
        sizes.add(size)
        return True
