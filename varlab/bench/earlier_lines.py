"""Lines that an earlier measurement wrote, and what a new line is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from varlab.config import Config
from varlab.errors import VarlabError
from varlab.json_file import parse_json
from varlab.run.config_keys import ABSENT, compare

__all__ = ["differences", "partner", "read_lines", "times_as_fast"]

_SAME = ("what", "work", "device_type", "threads")
_NEEDED = {*_SAME, "settings", "images", "seconds", "cpu_seconds", "device", "version", "commit"}
_NAMED = 3  # differences that are named; where there are more, the measurements have little in common


def read_lines(path: Path) -> list[Config]:
    """The lines of a file, or of a measurement's folder. VarlabError for one that is not there or holds anything else."""
    path = path / "bench.jsonl" if path.is_dir() else path
    try:
        lines = [parse_json(line) for line in path.read_bytes().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise VarlabError(f"against={path} cannot be read ({error}): name a bench.jsonl of varlab bench.") from None
    if not lines or not all(map(_is_line, lines)):
        raise VarlabError(f"against={path} holds no lines of varlab bench: name a bench.jsonl.")
    return lines


def _is_line(line: object) -> bool:
    """Whether it has all that is compared."""
    if not isinstance(line, dict) or not line.keys() >= _NEEDED or not isinstance(line["settings"], dict):
        return False
    try:
        return min(_per_image(line)) > 0
    except (TypeError, ValueError, KeyError, ZeroDivisionError):
        return False


def partner(line: Config, earlier: Sequence[Config]) -> Config | None:
    """The latest of the earlier lines with the same work and equal settings."""
    return next((other for other in reversed(earlier) if not _differing(line, other)), None)


def differences(line: Config, earlier: Sequence[Config]) -> str:
    """What sets a line apart from the earlier one of its work that is most like it; empty where there is none."""
    rows = [_differing(line, other) for other in earlier if line["work"] == other["work"]]
    nearest = min(rows, key=len, default={})
    named = [f"{key} is {now}, not {then}" for key, (now, then) in list(nearest.items())[:_NAMED]]
    return "; ".join(named) + ("; …" if len(nearest) > _NAMED else "")


def _differing(line: Config, other: Config) -> dict[str, tuple[object, ...]]:
    """What two lines do not share. A key that only one version has counts only where it names another part."""
    place = compare({key: line[key] for key in _SAME}, {key: other[key] for key in _SAME})
    settings = compare(line["settings"], other["settings"])
    return place | {key: values for key, values in settings.items() if ABSENT not in values or key.endswith("_target_")}


def times_as_fast(line: Config, other: Config) -> tuple[float, float]:
    """How many times as fast a line is as an earlier one, in seconds and in CPU seconds per image."""
    now, then = _per_image(line), _per_image(other)
    return then[0] / now[0], then[1] / now[1]


def _per_image(line: Mapping[str, Config]) -> tuple[float, float]:
    images = float(str(line["images"]))
    wall, cpu = (max(float(line[key]["median"]), 1e-12) / images for key in ("seconds", "cpu_seconds"))
    return wall, cpu
