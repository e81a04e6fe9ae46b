"""``scores/<protocol>.json`` of a run, read into dataclasses; of a damaged file, a sentence."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from varlab.config import Config
from varlab.errors import VarlabError
from varlab.json_file import read_json

__all__ = ["Score", "number", "read_scores", "refusal"]

_PER_SAMPLE = {"flops_per_sample": "sampling_flops", "seconds_per_sample": "sampling_seconds"}


@dataclass(frozen=True)
class Score:
    """One ``scores/<protocol>.json``: numbers, and the protocol that they were measured under."""

    name: str  # the file's stem
    protocol: Config
    values: Config
    cost: Config
    images: int | None  # images the run had seen when it was scored
    modified: float  # seconds since the epoch
    best: Mapping[str, str] = field(default_factory=dict)  # of the user's own metrics: min or max, or empty
    by_class: Mapping[str, object] = field(default_factory=dict)  # scores of each class, by number

    def get(self, key: str) -> float | None:
        """A score, the cost of sampling for it, or that cost per sample."""
        if key in _PER_SAMPLE:
            total = self.get(_PER_SAMPLE[key])
            return total / self.samples if total is not None and self.samples else None
        value = number(self.values.get(key))
        return number(self.cost.get(key)) if value is None else value

    @property
    def samples(self) -> int:
        """How many images were scored; 0 where the protocol does not say."""
        count = self.protocol.get("n")
        return count if isinstance(count, int) else 0


def read_scores(folder: Path) -> tuple[list[Score], list[str]]:
    """The scores in a folder by name, and a sentence about each file that holds none."""
    scores, faults = [], []
    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(".json"))  # noqa: PTH208
    except (FileNotFoundError, NotADirectoryError):
        names = []
    except OSError as error:
        return [], [refusal(error)]
    for name in names:
        try:
            scores.append(_read_score(folder / name))
        except FileNotFoundError:
            continue
        except VarlabError as error:
            faults.append(str(error))
    return scores, faults


def _read_score(path: Path) -> Score:
    """Raises FileNotFoundError; VarlabError with the reason where the file holds no scores."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise VarlabError(f"{path} is not a JSON object: evaluate the run again, or remove it.")
    parts: dict[str, Config] = {key: content.get(key, {}) for key in ("protocol", "scores", "cost", "best", "by_class")}
    for key, part in parts.items():
        if not isinstance(part, dict):
            raise VarlabError(f"{path}: {key} is not a JSON object: evaluate the run again, or remove the file.")
    images = content.get("images")
    seen = images if isinstance(images, int) else None
    modified = path.stat().st_mtime
    return Score(
        path.stem, parts["protocol"], parts["scores"], parts["cost"], seen, modified, parts["best"], parts["by_class"]
    )


def refusal(error: OSError) -> str:
    """What a report says of a folder that may not be entered."""
    return f"The folder {error.filename} cannot be read ({error.strerror}): make it readable."


def number(value: object) -> float | None:
    """The value if it is a finite number, else None."""
    if type(value) in (int, float) and math.isfinite(value):  # type: ignore[arg-type]
        return value  # type: ignore[return-value]
    return None
