"""The pace of a training on this machine, measured by its first updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from varlab.config import Config
from varlab.errors import VarlabError
from varlab.json_file import parse_json
from varlab.run.record import read_finished

__all__ = ["Pace", "measured_pace"]


@dataclass(frozen=True, kw_only=True)
class Pace:
    """What a trial measured. flops, late_flops: of an image, before and after the discriminator begins to learn.

    images_per_second: of updates alone. images: of the trial. overhead: seconds of the command beside its updates: imports,
    reading, a last validation. sampling_flops: of a sample; 0 for a training that samples nothing. encoded_flops: of encoding
    an image in each update, which a longer training does once.
    """

    images_per_second: float
    images: int
    flops: float
    late_flops: float = 0.0
    sampling_flops: float = 0.0
    encoded_flops: float = 0.0
    overhead: float = 0.0

    @property
    def flops_per_second(self) -> float:
        """Operations a second of the updates."""
        return self.images_per_second * (self.flops + self.encoded_flops)

    def images_in(self, seconds: float, *, late_from: float = float("inf")) -> float:
        """Images that are trained in so many seconds. late_from: images after which each costs ``late_flops`` more."""
        early = self.flops_per_second * max(seconds, 0.0) / self.flops
        if early <= late_from:
            return early
        return late_from + (early - late_from) * self.flops / (self.flops + self.late_flops)

    def seconds_for(self, images: int, *, late_from: float = float("inf")) -> float:
        """Seconds of a command that trains so many images."""
        late = max(images - late_from, 0.0) * self.late_flops
        return self.overhead + (images * self.flops + late) / self.flops_per_second

    def to_json(self) -> Config:
        """The numbers by name."""
        return asdict(self)


def measured_pace(run: Path, *, unmeasured: int, wall: float, encodes: bool = False) -> Pace:
    """The pace of a finished trial. unmeasured: images at its beginning. wall: seconds of its whole command.

    encodes: whether its updates encode their images, which the training itself does not. Raises VarlabError for a trial
    without enough log points.
    """
    record = read_finished(run)
    points = [(point["images"], point["seconds"]) for point in _log_points(run / "metrics.jsonl")]
    first = next((point for point in points if point[0] >= unmeasured), (0, 0.0))
    last = points[-1] if points else first
    if last[1] <= first[1]:
        raise VarlabError(f"{run} has no log points to measure: remove it, and run the same command again.")
    cost = record.cost
    return Pace(
        images_per_second=(last[0] - first[0]) / (last[1] - first[1]),
        images=record.outcome.images,
        flops=float(cost["train_flops_per_image"]),
        late_flops=float(cost.get("disc_flops_per_image", 0)),
        sampling_flops=float(cost.get("sampling_flops_per_image", 0)),
        encoded_flops=float(cost.get("encode_flops_per_image", 0)) if encodes else 0.0,
        overhead=max(wall - record.outcome.seconds, 0.0),
    )


def _log_points(file: Path) -> Sequence[Mapping[str, float]]:
    return [parse_json(line) for line in file.read_bytes().splitlines()] if file.is_file() else []
