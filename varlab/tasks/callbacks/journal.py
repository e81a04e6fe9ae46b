"""The files for a run's numbers and pictures: ``metrics.jsonl``, TensorBoard events and ``pictures/``."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from torch import Tensor

from varlab.config import Config
from varlab.files import atomic_write
from varlab.tasks.base import Task

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_log = logging.getLogger(__name__)


class Journal:
    """Writes one JSON object a line, with images, flops and seconds first, and the same numbers to TensorBoard.

    directory: of the run. No file is opened before the first entry, so ranks that never write touch no file.
    """

    def __init__(self, *, directory: Path, tensorboard: bool):
        self._directory, self._tensorboard = directory, tensorboard
        self._writer: SummaryWriter | None = None
        self._purge_step: int | None = None

    @property
    def path(self) -> Path:
        """metrics.jsonl."""
        return self._directory / "metrics.jsonl"

    def cut(self, images: int) -> None:
        """Delete the entries after ``images``: a run that resumes there writes them again."""
        self._purge_step = images + 1
        if not self.path.exists():
            return
        kept = [line for line in self.path.read_text().splitlines() if _images_of(line) <= images]
        with atomic_write(self.path) as file:
            file.write("".join(f"{line}\n" for line in kept).encode())

    def last_values(self) -> Config:
        """The last value of each metric that was written, by name."""
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        return {name: value for line in lines for name, value in json.loads(line).items()}

    def write(self, task: Task, values: Mapping[str, float]) -> None:
        """Write a log point. Values that are not finite are left out with a warning: JSON has none."""
        finite = {name: value for name, value in values.items() if math.isfinite(value)}
        if len(finite) < len(values):
            _log.warning("not finite after %d images: %s", task.images, ", ".join(values.keys() - finite.keys()))
        clock = {
            "images": task.images,
            "flops": task.flops_at(task.images),
            "seconds": round(task.stopwatch.seconds, 3),
        }
        self._directory.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.write(json.dumps({**clock, **finite}) + "\n")
        if (writer := self._open()) is not None:
            for name, value in finite.items():
                writer.add_scalar(name, value, task.images)
            writer.flush()

    def picture(self, task: Task, name: str, img_u8_3HW: Tensor) -> None:
        """Write a picture: the newest as ``pictures/<name>.png``, all in TensorBoard."""
        img_u8_HW3 = img_u8_3HW.permute(1, 2, 0).cpu().contiguous().numpy()
        with atomic_write(self._directory / "pictures" / f"{name}.png") as file:
            Image.fromarray(img_u8_HW3).save(file, format="PNG")
        if (writer := self._open()) is not None:
            writer.add_image(name, img_u8_HW3, task.images, dataformats="HWC")
            writer.flush()

    def close(self) -> None:
        """Close the events file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _open(self) -> SummaryWriter | None:
        if self._tensorboard and self._writer is None:
            from torch.utils.tensorboard import SummaryWriter  # takes a second to import: only for ranks that write

            self._writer = SummaryWriter(str(self._directory / "tb"), purge_step=self._purge_step)
        return self._writer


def _images_of(line: str) -> float:
    """The clock of a line; infinite for the incomplete last line of a killed run."""
    try:
        return json.loads(line)["images"]
    except (ValueError, KeyError, TypeError):
        return math.inf
