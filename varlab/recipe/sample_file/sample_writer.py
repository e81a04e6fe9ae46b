"""The ADM suite's file of samples, made part by part: in bounded memory, on several ranks, and again from where it stopped."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import cached_property, partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from varlab.config import Config
from varlab.data.image.npz import IMAGES, LABELS, write_npz
from varlab.files import atomic_write, digest, require_room
from varlab.recipe.token_shards.rank_stages import RankStages
from varlab.rng import Rng
from varlab.run.directory import RunDirectory

__all__ = ["SampleWriter"]

_ROOM = 1 << 20  # bytes beside the images


class SampleWriter:
    """Write ``samples.npz``: ``arr_0`` uint8 [N, H, W, 3] and the labels ``arr_1`` int64, in an order drawn from the seed.

    directory: locked by rank 0. origin: everything that the samples depend on, in JSON types. draw: img_u8_B3HW on the CPU of
    the samples with these numbers, the same ones whenever they are asked for. label_N: of sample 0, 1, …
    batch: samples of a part, which is written as soon as it is drawn and kept until ``remove_parts``.
    """

    def __init__(
        self,
        *,
        directory: RunDirectory,
        origin: Config,
        draw: Callable[[Tensor], Tensor],
        label_N: Tensor,
        size: tuple[int, int],
        seed: int,
        batch: int,
    ):
        self._directory, self._draw, self._label_N, self._size = directory, draw, label_N, size
        self._ids_N = Rng(seed).stream("samples/order").permutation(len(label_N))[0]
        self._rows = torch.arange(len(label_N)).split(batch)
        self._parts = directory.path / f"parts-{digest(origin | {'batch': batch})[:12]}"
        self._stages = RankStages(directory, directory, file="sampling.json")

    @cached_property
    def path(self) -> Path:
        """The file."""
        return self._directory.path / "samples.npz"

    def write(self, *, world: int, progress: Callable[[int, int], None]) -> None:
        """Draw this rank's share of the parts, and wait until the file is whole. progress: called with (done, total)."""
        rank = self._directory.rank
        if rank == 0:
            self._clear()
        self._stages.agree("begun", world)
        todo = [rows for rows in self._rows[rank::world] if not self._part(rows)]
        done, total = 0, sum(map(len, todo))
        for rows in todo:
            self._directory.check_still_here()
            self._write_part(rows)
            done += len(rows)
            if rank == 0:
                progress(done, total)
        if rank == 0:
            self._join()
        self._stages.agree("written", world)

    def _clear(self) -> None:
        """Remove the parts of other samples, and refuse a disk that is too small."""
        for other in self._directory.path.glob("parts-*"):
            if other != self._parts:
                shutil.rmtree(other)
        there = sum(file.stat().st_size for file in self._parts.glob("*.npy"))
        images = 3 * self._size[0] * self._size[1] * len(self._label_N)
        require_room(self._directory.path, 2 * images + _ROOM - there)

    def _file(self, rows: Tensor) -> Path:
        return self._parts / f"{int(rows[0]):08d}.npy"

    def _part(self, rows: Tensor) -> list[NDArray[np.uint8]]:
        """The images of these rows of the file as one array, if a process has written them all."""
        with suppress(OSError, ValueError):
            part: NDArray[np.uint8] = np.load(self._file(rows), mmap_mode="r", allow_pickle=False)
            if part.shape == (len(rows), *self._size, 3) and part.dtype == np.uint8:
                return [part]
        return []

    def _write_part(self, rows: Tensor) -> None:
        img_u8_B3HW = self._draw(self._ids_N[rows])
        with atomic_write(self._file(rows)) as file:
            np.lib.format.write_array(file, img_u8_B3HW.permute(0, 2, 3, 1).contiguous().numpy(), allow_pickle=False)

    def _join(self) -> None:
        """Write the file from the parts, when all ranks have written theirs."""

        def parts() -> Iterator[NDArray[np.generic]]:
            for rows in self._rows:
                [part] = self._stages.wait(partial(self._part, rows))
                yield part

        shape = (len(self._label_N), *self._size, 3)
        write_npz(self.path, {IMAGES: (shape, parts()), LABELS: self._label_N[self._ids_N].numpy()})

    def remove_parts(self) -> None:
        """Remove the parts, when nothing is left to do that a kill could stop. For rank 0 only."""
        shutil.rmtree(self._parts)
