"""TensorBoard events of a run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger


class TensorBoard(TensorBoardLogger):
    """Lightning's logger, in one folder: a resumed run hides what it repeats, and pictures are kept.

    save_dir: of the run. version: the folder in it. settings: further arguments of torch's SummaryWriter.
    """

    def __init__(self, *, save_dir: Path | str, version: str = "tb", **settings: Any):
        super().__init__(save_dir, name="", version=version, default_hp_metric=False, **settings)

    def cut(self, images: int) -> None:
        """Hide the events of an earlier attempt after ``images``."""
        if len(list(Path(self.log_dir).glob("events.*"))) > 1:  # one is this attempt's, which Lightning has opened
            self.experiment.close()
            self._experiment = None
            self._kwargs["purge_step"] = images + 1  # an argument of SummaryWriter

    def log_image(self, key: str, images: Sequence[np.ndarray], step: int) -> None:
        """Add pictures (uint8, HW3)."""
        for image in images:
            self.experiment.add_image(key, image, step, dataformats="HWC")

    def save(self) -> None:
        """Write what was logged; there is no file of hyperparameters, as run.json holds them."""
        self.experiment.flush()
