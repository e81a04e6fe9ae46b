"""A text in the quotes of Hydra's grammar, and as one word of a shell's command."""

from __future__ import annotations

import re
import shlex

__all__ = ["quoted", "shell_word"]

_SPECIAL_IN_DOUBLE_QUOTES = frozenset('"$`\\!')


def quoted(text: str) -> str:
    """A text in single quotes, which Hydra and OmegaConf read back unchanged."""
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    return "'" + re.sub(r"(\\*)('|\Z)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), text) + "'"


def shell_word(text: str) -> str:
    """A text as a shell takes it: in double quotes where these keep every character, as they are easier to read."""
    if shlex.quote(text) == text:
        return text
    return shlex.quote(text) if _SPECIAL_IN_DOUBLE_QUOTES & set(text) else f'"{text}"'
