"""From what people type to what Hydra's grammar reads.

Paths of runs contain ``=`` (``runs/generator/order=raster``), which Hydra refuses without quotes, and
``varlab report runs/a`` names no key. Pure functions rewrite both; all other arguments stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from varlab.errors import VarlabError

__all__ = ["quote", "rewrite"]

_KEY = re.compile(r"[+~]{0,2}[A-Za-z_][\w.\-@:/]*")  # order, data.batch, +trainer.x, hydra/launcher, loss@a.b
_GRAMMAR = frozenset("'\"[]{}()$\\")  # a value with one of these is written in Hydra's grammar already
_TEXTS = frozenset({"title"})  # keys whose values are text: commas and apostrophes belong to them
_NAMES = frozenset({"label"})  # keys whose values are numbers or names; under -m, commas separate these


def rewrite(
    arguments: Sequence[str],
    *,
    command: str,
    positional: str | None,
    multirun: bool,
    is_group: Callable[[str], bool],
    renamed: Mapping[str, str] | None = None,
) -> list[str]:
    """The arguments without flags, with bare paths turned into overrides and difficult values quoted.

    positional: the key of bare arguments: ``runs`` takes a list, any other key one path (under ``-m`` one a job); None:
    none. renamed: keys that are config groups elsewhere and plain values in this command, with their names in its
    configuration. is_group: whether a key with a slash is a config group; otherwise the argument is a path.
    Raises VarlabError for a bare argument that the command cannot take.
    """
    bare = [argument for argument in arguments if _is_bare(argument, is_group)]
    named = [quote(_renamed(one, renamed or {}), multirun=multirun) for one in arguments if one not in bare]
    return named + _name(bare, command=command, positional=positional, multirun=multirun)


def _renamed(argument: str, names: Mapping[str, str]) -> str:
    key, equals, value = argument.partition("=")
    return f"{names.get(key, key)}{equals}{value}"


def quote(argument: str, *, multirun: bool) -> str:
    """``key=value``, with quotes if the value contains ``=``. Under ``-m`` commas separate values."""
    key, equals, value = argument.partition("=")
    is_name = key in _NAMES and not multirun and not re.fullmatch(r"-?\d+|null|", value)
    if (key in _TEXTS or is_name) and not _is_quoted(value):
        return f"{key}={_quoted(value)}"
    if not equals or "=" not in value or _GRAMMAR & set(value):
        return argument
    values = value.split(",") if multirun else [value]
    return f"{key}={','.join(_quoted(one) if '=' in one else one for one in values)}"


def _is_quoted(value: str) -> bool:
    return len(value) > 1 and value[0] == value[-1] and value[0] in "'\""


def _quoted(value: str) -> str:
    """A value in quotes, which Hydra reads back unchanged."""
    return "'" + value.replace("'", "\\'") + "'"


def _is_bare(argument: str, is_group: Callable[[str], bool]) -> bool:
    """Whether an argument is a path and not ``key=value`` or ``~key``."""
    if argument.startswith("~") and not argument.startswith("~/"):
        return False
    key, equals, _ = argument.partition("=")
    if not equals or not _KEY.fullmatch(key):
        return True
    if "/" not in key:
        return False
    group = key.lstrip("+~").partition("@")[0]
    return Path(argument).exists() or not (group.startswith("hydra/") or is_group(group))


def _name(bare: list[str], *, command: str, positional: str | None, multirun: bool) -> list[str]:
    if not bare:
        return []
    if positional is None:
        raise VarlabError(f"'{bare[0]}' is not key=value: see varlab {command} --help for the keys.")
    quoted = [_quoted(path.rstrip("/") or path) for path in bare]
    if positional == "runs":
        return [f"runs=[{','.join(quoted)}]"]
    if len(bare) > 1 and not multirun:
        raise VarlabError(
            f"varlab {command} takes one {positional}, not {len(bare)}: use varlab {command} -m {' '.join(bare)} for one "
            "after another."
        )
    return [f"{positional}={','.join(quoted)}"]
