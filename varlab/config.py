"""The one type of configurations and records, and where the packaged ones lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

Config: TypeAlias = dict[str, Any]
"""A resolved configuration, or a part of ``run.json``: keys are strings, values are JSON types."""


def conf_dir() -> Path:
    """The configuration that belongs to this code: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside, beside = package / "conf", package.parent / "conf"
    return inside if inside.is_dir() else beside
