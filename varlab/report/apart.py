"""What differs between two runs: all that a run records before it begins."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from varlab.config import Config
from varlab.report.read import Run
from varlab.run.record import ABSENT, Use, compare, flatten, uncounted

__all__ = ["told_apart"]

_PARTS = ("command", "seed", "config", "auto", "code", "versions", "hardware", "data", "parents", "budget")
_LEFT_OUT = ("data.path.", *(f"config.{key}." for key in uncounted(Use.SCIENCE)))


def told_apart(a: Run, b: Run) -> list[str]:
    """A line for each difference, ``key: value in a → value in b``: configuration, code and its uncommitted changes (by hash),
    package versions, hardware, images, parents."""
    rows = compare(_known(a), _known(b))
    return [f"{key}: {x} → {y}" for key, (x, y) in rows.items() if not f"{key}.".startswith(_LEFT_OUT)]


def _known(run: Run) -> Config:
    found = {key: run.record.get(key) for key in _PARTS if key in run.record}
    code = dict(run.part("code"))
    if code.get("diff"):
        code["diff"] = hashlib.sha256(str(code["diff"]).encode()).hexdigest()[:12]
    flat = flatten({**found, "code": code})
    return {key: _short(value) for key, value in flat.items()}


def _short(value: Any) -> Any:
    if isinstance(value, Mapping) and not value:
        return ABSENT
    return f"{value[:12]}…" if isinstance(value, str) and len(value) == 64 else value
