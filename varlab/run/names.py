"""The directory of a run, named by its overrides and never by the clock: the same command resumes the run."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from varlab.run.config_keys import Use, counts

__all__ = ["overrides_name", "run_path"]

ROOT = "runs"
LONGEST = 180  # bytes; file systems allow 255, and temporary names are longer than final ones


def run_path(*, out: str | None, name: str, overrides: Sequence[str], multirun: bool) -> Path:
    """The directory of a run: ``out``, or below it under ``-m``; without ``out``, ``runs/<name>/<overrides>``."""
    if out is not None and not multirun:
        return Path(out)
    parent = Path(out) if out is not None else Path(ROOT) / name
    return parent / overrides_name(overrides)


def overrides_name(overrides: Sequence[str]) -> str:
    """The overrides as one folder name, independent of their order.

    ``["seed=1", "order=raster"]`` → ``order=raster+seed=1``; ``~key`` → ``no-key``; no override → ``default``. The name
    consists of letters, digits and ``_.=+-``, which no shell treats specially. A long name is cut, and ends in its hash.
    """
    parts = dict(_part(override) for override in overrides if _is_named(override))
    name = "+".join(parts[key] for key in sorted(parts)) or "default"
    if len(name) <= LONGEST:
        return name
    return f"{name[: LONGEST - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _is_named(override: str) -> bool:
    """Whether an override (``a.b=1``, ``+a/b@c=d``, ``~a``) counts for the name, by its key or config group."""
    return counts(re.split(r"[/@=]", override.lstrip("+~"), maxsplit=1)[0], Use.DIRECTORY)


def _part(override: str) -> tuple[str, str]:
    """(key, the override's part of the name)."""
    key, _, value = override.partition("=")
    name = _clean(key.lstrip("+~"))
    return name, f"no-{name}" if key.startswith("~") else f"{name}={_clean(value)}"


def _clean(text: str) -> str:
    text = re.sub(r"[\s'\"\[\](){}\\]", "", text.strip()).replace("/", "_")
    return re.sub(r"[^A-Za-z0-9_.=+-]", "-", text)
