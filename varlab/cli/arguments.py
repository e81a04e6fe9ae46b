"""From what people type to what Hydra's grammar reads.

``varlab report runs/a`` names no key, and paths contain ``=``, blanks or accents (``runs/generator/order=raster``), which
Hydra refuses without quotes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from varlab.cli.typed_value import expand_home, in_grammar
from varlab.config import quoted, shell_word
from varlab.errors import VarlabError

__all__ = ["rewrite"]

_KEY = re.compile(r"[+~]{0,2}[A-Za-z_][\w.\-@:/]*", re.ASCII)  # order, data.batch, +trainer.x, hydra/launcher, loss@a.b


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
    named = [_named(one, renamed or {}, multirun) for one in arguments if one not in bare]
    return named + _name(bare, command=command, positional=positional, multirun=multirun)


def _named(argument: str, names: Mapping[str, str], multirun: bool) -> str:
    key, equals, value = argument.partition("=")
    key = names.get(key, key)
    return f"{key}={in_grammar(key, value, multirun=multirun)}" if value else f"{key}{equals}"


def _is_bare(argument: str, is_group: Callable[[str], bool]) -> bool:
    """Whether an argument is a path and not ``key=value`` or ``~key``."""
    if argument.startswith("~") and _KEY.fullmatch(argument.partition("=")[0]):
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
    literal = [quoted(expand_home(path).rstrip("/") or path) for path in bare]
    if positional == "runs":
        return [f"runs=[{','.join(literal)}]"]
    if len(bare) > 1 and not multirun:
        words = " ".join(map(shell_word, bare))
        raise VarlabError(
            f"varlab {command} takes one {positional}, not {len(bare)}: use varlab {command} -m {words} for one after another."
        )
    return [f"{positional}={','.join(literal)}"]
