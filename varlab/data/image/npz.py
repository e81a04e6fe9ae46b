"""Files of images as numpy's ``.npz``, ``arr_0`` uint8 [N, H, W, 3]: written and read piece by piece, whatever their size."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from varlab.errors import VarlabError
from varlab.files import atomic_write

__all__ = ["IMAGES", "LABELS", "NpzFile", "write_npz"]

IMAGES, LABELS = "arr_0", "arr_1"  # names of the ADM suite
_YEAR_ONE = (1980, 1, 1, 0, 0, 0)  # a zip's earliest: equal content is an equal file

Pieces = tuple[tuple[int, ...], Iterable[NDArray[np.generic]]]
"""The shape of an array, and its rows in pieces, of which there must be one."""


def write_npz(path: Path, arrays: Mapping[str, NDArray[np.generic] | Pieces]) -> None:
    """Write arrays without compression, atomically; of an array in pieces only one piece is in memory at a time."""
    with atomic_write(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        for name, array in arrays.items():
            shape, pieces = (array.shape, [array]) if isinstance(array, np.ndarray) else array
            with archive.open(zipfile.ZipInfo(f"{name}.npy", _YEAR_ONE), "w", force_zip64=True) as member:
                _write_rows(member, shape, pieces)


def _write_rows(member: IO[bytes], shape: tuple[int, ...], pieces: Iterable[NDArray[np.generic]]) -> None:
    rows = 0
    for piece in pieces:
        if rows == 0:
            kind = np.lib.format.dtype_to_descr(piece.dtype)
            header = {"descr": kind, "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(member, header)
        member.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
        rows += len(piece)
    assert rows == shape[0], f"{rows} rows of {shape}"


class NpzFile:
    """An ``.npz`` file of anybody: its small arrays by name, and its images in batches. Nothing in it is unpickled.

    Raises VarlabError if it is no such file.
    """

    def __init__(self, path: Path):
        self.path = path
        with self._errors(), zipfile.ZipFile(path) as archive:
            members = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
            self._headers = {name: self._header(archive, name) for name in members}

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, NotImplementedError) as error:
            why = " ".join(str(error).split()) or type(error).__name__
            raise VarlabError(
                f"{self.path} cannot be read ({why:.200}): give an .npz file as numpy writes it."
            ) from error

    @staticmethod
    def _header(archive: zipfile.ZipFile, name: str) -> tuple[tuple[int, ...], np.dtype[np.generic]]:
        with archive.open(f"{name}.npy") as member:
            shape, fortran, dtype = _read_header(member)
        if (fortran and len(shape) > 1) or dtype.hasobject:
            raise ValueError(f"{name} holds objects, or its columns lie together")
        return shape, dtype

    def __contains__(self, name: str) -> bool:
        return name in self._headers

    @property
    def names(self) -> list[str]:
        """The names of its arrays."""
        return list(self._headers)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of an array. VarlabError if there is none of this name."""
        if name not in self._headers:
            raise VarlabError(
                f"{self.path} has no array {name}, only {', '.join(self.names) or 'none'}: give another file."
            )
        return self._headers[name][0]

    def array(self, name: str) -> NDArray[np.generic]:
        """A whole array. VarlabError if there is none of this name."""
        self.shape(name)
        with self._errors(), np.load(self.path, allow_pickle=False) as file:
            whole: NDArray[np.generic] = file[name]
            return whole

    def require_images(self) -> tuple[int, int, int]:
        """(N, H, W) of the images. VarlabError unless ``arr_0`` is uint8 [N, H, W, 3]."""
        shape = self.shape(IMAGES)
        if len(shape) != 4 or shape[3] != 3 or self._headers[IMAGES][1] != np.uint8 or 0 in shape:
            raise VarlabError(
                f"{self.path}: {IMAGES} is {self._headers[IMAGES][1]} {list(shape)}, but images are uint8 [N, H, W, 3]: write "
                "them so, rounded to 0 … 255."
            )
        return shape[0], shape[1], shape[2]

    def images(self, batch: int) -> Iterator[NDArray[np.uint8]]:
        """The images [B, H, W, 3] in batches, in their order."""
        n, _, _ = self.require_images()
        yield from self.rows(range(first, min(first + batch, n)) for first in range(0, n, batch))

    def rows(self, parts: Iterable[range]) -> Iterator[NDArray[np.uint8]]:
        """The images [B, H, W, 3] of these rows. parts: consecutive rows each, in the file's order."""
        _, height, width = self.require_images()
        size, place = height * width * 3, 0
        with self._errors(), zipfile.ZipFile(self.path) as archive, archive.open(f"{IMAGES}.npy") as member:
            _read_header(member)
            for part in parts:
                member.seek((part.start - place) * size, os.SEEK_CUR)
                content, place = member.read(len(part) * size), part.stop
                yield np.frombuffer(bytearray(content), np.uint8).reshape(len(part), height, width, 3)


def _read_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[np.generic]]:
    """(shape, whether Fortran's order, dtype) at the beginning of an array."""
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(member)
    return shape, fortran, dtype
