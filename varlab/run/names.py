"""Where a run lands: named by what was asked, never by the clock, so that asking again resumes it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

__all__ = ["overrides_name", "run_path"]

ROOT = "runs"
LONGEST = 180  # bytes: file systems stop at 255, and temporary names are longer than the final ones
# How and where a run is done, not what is asked.
_UNNAMED = frozenset({"launch", "trainer", "out", "experiment", "name", "hydra"})


def run_path(*, out: str | None, name: str, overrides: Sequence[str], multirun: bool) -> Path:
    """The run directory: ``out`` itself, under ``-m`` a folder in it; without ``out``, ``runs/<name>/<overrides>``."""
    if out is not None and not multirun:
        return Path(out)
    parent = Path(out) if out is not None else Path(ROOT) / name
    return parent / overrides_name(overrides)


def overrides_name(overrides: Sequence[str]) -> str:
    """The overrides as one folder name, the same in whatever order they were given.

    ``["seed=1", "order=raster"]`` → ``order=raster+seed=1``; ``~key`` → ``no-key``; nothing → ``default``. Only
    letters, digits and ``_.=+-`` remain, so that shells take it as it is. A name too long ends in a hash of the whole.
    """
    parts = dict(_part(override) for override in overrides if not _is_unnamed(override))
    name = "+".join(parts[key] for key in sorted(parts)) or "default"
    if len(name) <= LONGEST:
        return name
    digest = hashlib.sha256(name.encode()).hexdigest()[:8]
    return f"{name[: LONGEST - 9]}-{digest}"


def _is_unnamed(override: str) -> bool:
    key = override.partition("=")[0].lstrip("+~")
    return re.split(r"[./@]", key, maxsplit=1)[0] in _UNNAMED


def _part(override: str) -> tuple[str, str]:
    """(key, the override's part of the name)."""
    key, _, value = override.partition("=")
    name = _clean(key.lstrip("+~"))
    return name, f"no-{name}" if key.startswith("~") else f"{name}={_clean(value)}"


def _clean(text: str) -> str:
    text = re.sub(r"[\s'\"\[\](){}\\]", "", text.strip()).replace("/", "_")
    return re.sub(r"[^A-Za-z0-9_.=+-]", "-", text)
