"""The value that people type after ``key=``, in Hydra's grammar.

Paths, names and texts are taken as they are typed (``conf/typed_values.yaml`` lists their keys). A value that is written in
Hydra's grammar on purpose keeps its meaning, unless a path of exactly this spelling exists.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import OmegaConf

from varlab.config import conf_dir, quoted
from varlab.errors import VarlabError

__all__ = ["expand_home", "in_grammar"]

_INDEX = re.compile(r"-?\d+")
_BEFORE_ELEMENT = ("", ",", "[", "{", "(", ":")  # after these, a quotation mark begins a quoted text
_UNREADABLE = object()
_SWEEP = object()


def in_grammar(key: str, value: str, *, multirun: bool) -> str:
    """The value as Hydra's grammar writes it. Under ``-m`` commas separate values."""
    kind = _kinds().get(key.lstrip("+~"), "value")
    if kind == "text":
        return value if _is_quoted(value) else _literal(value)
    if kind == "value" and _read(value) is not _UNREADABLE:
        return value
    return ",".join(map(_READERS[kind], _pieces(value) if multirun else [value]))


def expand_home(path: str) -> str:
    """A path with ``~`` as the home directory, which a shell does not expand inside quotes."""
    if path != "~" and not path.startswith("~/"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError as error:
        raise VarlabError(
            f"{path} needs a home directory, and there is none: set HOME, or write the whole path."
        ) from error


@cache
def _kinds() -> Mapping[str, str]:
    """Key → how its value is read."""
    listed = OmegaConf.to_container(OmegaConf.load(conf_dir() / "typed_values.yaml"))
    assert isinstance(listed, dict)
    return {key: str(kind) for kind, keys in listed.items() for key in keys}


def _read(value: str) -> object:
    """What Hydra reads; _SWEEP for several values."""
    try:
        override = OverridesParser.create().parse_override(f"key={value}")
        return _SWEEP if override.is_sweep_override() else override.value()
    except HydraException:
        return _UNREADABLE


def _literal(value: str) -> str:
    """The value as it is typed, in quotes if Hydra would read it differently."""
    return value if _read(value) == value and not _is_written(value) else quoted(value)


def _is_quoted(value: str) -> bool:
    return len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" and _read(value) is not _UNREADABLE


def _is_written(value: str) -> bool:
    """Whether the value is in the quotes of Hydra's grammar or has a reference to another key."""
    return _is_quoted(value) or "${" in value


def _is_list(value: str) -> bool:
    return value.startswith("[") and value.endswith("]")


def _path(value: str) -> str:
    value = expand_home(value)
    if os.path.lexists(value):
        return _literal(value)
    read = _read(value)
    # a text of another spelling has Hydra's escapes, as in a\,b
    return value if read is None or read is _SWEEP or isinstance(read, str) or _is_written(value) else quoted(value)


def _paths(value: str) -> str:
    return _list(value, _path) if _is_list(value) and not os.path.lexists(value) else _path(value)


def _name(value: str) -> str:
    if value in ("", "null") or _INDEX.fullmatch(value) or _is_written(value):
        return value
    return _list(value, _name) if _is_list(value) else _literal(value)


def _classes(value: str) -> str:
    if _INDEX.fullmatch(value):
        return value
    return _list(value, _name) if _is_list(value) and not os.path.lexists(value) else _path(value)


def _value(value: str) -> str:
    if _read(value) is not _UNREADABLE or value[0] in "'\"":
        return value
    if _is_list(value):
        return _list(value, _value)
    return value if value[0] in "[{" else quoted(value)


_READERS: Mapping[str, Callable[[str], str]] = {
    "path": _path,
    "paths": _paths,
    "classes": _classes,
    "name": _name,
    "value": _value,
}


def _list(value: str, reader: Callable[[str], str]) -> str:
    elements = [element.strip() for element in _pieces(value[1:-1])]
    return f"[{','.join(reader(element) if element else element for element in elements)}]"


def _pieces(value: str) -> list[str]:
    """The parts between commas; a comma inside brackets or quotes separates nothing."""
    pieces, depth, quote, before = [""], 0, "", ""
    for letter in value:
        if quote:
            quote = "" if letter == quote and before != "\\" else quote
        elif letter in "'\"" and before in _BEFORE_ELEMENT:
            quote = letter
        else:
            depth += (letter in "[{(") - (letter in ")}]")
        if letter == "," and not depth and not quote:
            pieces.append("")
        else:
            pieces[-1] += letter
        before = letter if quote or not letter.isspace() else before
    return value.split(",") if depth or quote else pieces
