"""Configurations: their one type, where the packaged ones lie, and how a text is written as a value of a key."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any, TypeAlias

Config: TypeAlias = dict[str, Any]
"""A resolved configuration, or a part of ``run.json``: keys are strings, values are JSON types."""

_SPECIAL_IN_DOUBLE_QUOTES = frozenset('"$`\\!')


def conf_dir() -> Path:
    """The configuration that belongs to this code: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parent
    inside, beside = package / "conf", package.parent / "conf"
    return inside if inside.is_dir() else beside


def quoted(text: str) -> str:
    """A text in single quotes, which Hydra and OmegaConf read back unchanged."""
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text) + "'"


def shell_word(text: str) -> str:
    """A text as a shell takes it: in double quotes where these keep every character, as they are easier to read."""
    if shlex.quote(text) == text:
        return text
    return shlex.quote(text) if _SPECIAL_IN_DOUBLE_QUOTES & set(text) else f'"{text}"'
