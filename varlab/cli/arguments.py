"""From what people type to what Hydra's grammar reads.

Paths of runs hold ``=`` (``runs/generator/order=raster``), which Hydra refuses unquoted; and ``varlab report runs/a``
names no key at all. Both are rewritten here, by pure functions; everything else passes untouched.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from varlab.errors import VarlabError

__all__ = ["quote", "rewrite"]

_KEY = re.compile(r"[+~]{0,2}[A-Za-z_][\w.\-@:/]*")  # order, data.batch, +trainer.x, hydra/launcher, loss@a.b
_FLAGS_WITH_VALUE = frozenset(
    {"-c", "--cfg", "-p", "--package", "-cd", "--config-dir", "-cn", "--config-name", "-cp", "--config-path"}
)
_MULTIRUN = frozenset({"-m", "--multirun"})
_GROUPED = frozenset("'\"[]{}()$\\")  # the value speaks Hydra's grammar already: lists, quotes, sweeps, interpolations
_TEXTS = frozenset({"title"})  # for people: commas, apostrophes and all


def rewrite(
    arguments: Sequence[str],
    *,
    command: str,
    positional: str | None,
    is_group: Callable[[str], bool],
    renamed: Mapping[str, str] | None = None,
) -> list[str]:
    """The arguments with bare paths named and awkward values quoted.

    positional: the key that takes bare arguments: ``runs`` a list, any other one (under ``-m`` one a job); None: no key.
    renamed: keys that conf has config groups for, but which are values in this command, to the keys of its configuration.
    is_group: whether a key with a slash is a config group; if not, the argument is a path.
    Raises VarlabError for a bare argument that the command can't take.
    """
    multirun = any(argument in _MULTIRUN for argument in arguments)
    kept: list[str] = []
    bare: list[str] = []
    after_flag = False
    for argument in arguments:
        if after_flag or argument.startswith("-"):
            kept.append(argument)
        elif _is_bare(argument, is_group):
            bare.append(argument)
        else:
            kept.append(quote(_renamed(argument, renamed or {}), multirun=multirun))
        after_flag = argument in _FLAGS_WITH_VALUE
    return kept + _name(bare, command=command, positional=positional, multirun=multirun)


def _renamed(argument: str, names: Mapping[str, str]) -> str:
    key, equals, value = argument.partition("=")
    return f"{names.get(key, key)}{equals}{value}"


def quote(argument: str, *, multirun: bool) -> str:
    """``key=value``, the value quoted where Hydra would trip over an ``=``. Under ``-m`` commas separate values."""
    key, equals, value = argument.partition("=")
    if key in _TEXTS and not _is_quoted(value):
        return f"{key}={_quoted(value)}"
    if not equals or "=" not in value or _GROUPED & set(value):
        return argument
    values = value.split(",") if multirun else [value]
    return f"{key}={','.join(_quoted(one) if '=' in one else one for one in values)}"


def _is_quoted(value: str) -> bool:
    return len(value) > 1 and value[0] == value[-1] and value[0] in "'\""


def _quoted(value: str) -> str:
    """A value as Hydra reads it back letter by letter."""
    return "'" + value.replace("'", "\\'") + "'"


def _is_bare(argument: str, is_group: Callable[[str], bool]) -> bool:
    """Whether an argument is a path rather than ``key=value`` or ``~key``."""
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
        raise VarlabError(f"'{bare[0]}' is not key=value, and {command} takes nothing else (varlab {command} --help)")
    quoted = [_quoted(path.rstrip("/") or path) for path in bare]
    if positional == "runs":
        return [f"runs=[{','.join(quoted)}]"]
    if len(bare) > 1 and not multirun:
        raise VarlabError(
            f"one {positional} at a time, not {len(bare)}: varlab {command} -m {' '.join(bare)} takes them one after another"
        )
    return [f"{positional}={','.join(quoted)}"]
