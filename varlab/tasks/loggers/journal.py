"""The journal of a run: ``metrics.jsonl`` and ``pictures/``."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers.logger import Logger
from PIL import Image

from varlab.files import atomic_write, read_bytes, write_errors
from varlab.json_file import parse_json

_log = logging.getLogger(__name__)
_CLOCK = ("images", "flops", "seconds")
_LARGEST = 1 << 34  # bytes


class Journal(Logger):
    """Writes one JSON object a line, with images, flops and seconds first; of each picture the newest.

    directory: of the run, made if it is missing. It is not made again if it is removed later: files of a run that is lost would
    come back. No file is opened before the first entry, so ranks that never write touch no file.
    """

    name = version = ""

    def __init__(self, *, directory: Path | str):
        super().__init__()
        self._directory = Path(directory)
        with write_errors(self._directory):
            self._directory.mkdir(parents=True, exist_ok=True)

    @property
    def save_dir(self) -> str:
        """The run's directory, where Lightning's callbacks write by default."""
        return str(self._directory)

    @property
    def path(self) -> Path:
        """metrics.jsonl."""
        return self._directory / "metrics.jsonl"

    def cut(self, images: int) -> None:
        """Delete the entries after ``images``: a run that resumes there writes them again."""
        lines = self._lines()
        if lines:
            with atomic_write(self.path, make_folder=False) as file:
                file.writelines(line + b"\n" for line in lines if _values(line).get("images", math.inf) <= images)

    def last_values(self) -> dict[str, float]:
        """The last value of each metric that was written, by name."""
        return {name: value for line in self._lines() for name, value in _values(line).items()}

    def _lines(self) -> list[bytes]:
        """Raises VarlabError if something is there that cannot be read."""
        try:
            return read_bytes(self.path, _LARGEST).splitlines()
        except FileNotFoundError:
            return []

    def log_hyperparams(self, *arguments: Any, **keywords: Any) -> None:
        """Do nothing: run.json holds the configuration."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Write a log point of a task, whose clock is in the metrics.

        Values that are not finite are left out with a warning: JSON has none.
        """
        if "images" not in metrics:  # of another module's than a task's
            return
        finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
        if len(finite) < len(metrics):
            broken = ", ".join(sorted(metrics.keys() - finite.keys()))
            _log.warning("not finite after %d images: %s", metrics["images"], broken)
        clock = {name: finite.pop(name) for name in _CLOCK}
        whole = {"images": int(clock["images"]), "flops": int(clock["flops"])}
        with write_errors(self.path):
            with self.path.open("a") as file:
                file.write(json.dumps(clock | whole | finite) + "\n")

    def log_image(self, key: str, images: Sequence[np.ndarray], step: int) -> None:
        """Write the newest picture (uint8, HW3) as ``pictures/<key>.png``."""
        pictures = self._directory / "pictures"
        with write_errors(pictures):
            pictures.mkdir(exist_ok=True)
        with atomic_write(pictures / f"{key}.png", make_folder=False) as file:
            Image.fromarray(images[-1]).save(file, format="PNG")


def _values(line: bytes) -> dict[str, float]:
    """The numbers of a line; none of the incomplete last line of a killed run, and of a damaged one."""
    try:
        point = parse_json(line)
    except ValueError:
        return {}
    return {name: x for name, x in point.items() if isinstance(x, int | float)} if isinstance(point, dict) else {}
