"""JSON files: read within bounds, as anybody may have written them, and sealed by the digest of their own text."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from varlab.errors import VarlabError
from varlab.files import read_bytes, write_text

__all__ = ["is_sealed", "parse_json", "read_json", "write_json", "write_sealed_json"]

LARGEST = 64 << 20  # bytes of a file
_SEAL = "sha256"  # the first entry of a sealed file: the digest of all lines below it
_DEEPEST = 100  # lists and objects inside each other
_LONGEST_NUMBER = 300  # digits: any such number is still a float
_LONG_DIGITS = b"0" * _LONGEST_NUMBER
_TO_ZERO = bytes.maketrans(b"123456789", b"000000000")
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))


def write_json(path: Path, value: Mapping[str, object] | Sequence[object]) -> None:
    """Write a JSON file atomically, readable for people."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


def write_sealed_json(path: Path, value: Mapping[str, object], *, make_folder: bool = True) -> None:
    """Write a JSON object, not an empty one, below the digest of its text, which ``read_json`` compares (``atomic_write``)."""
    lines = json.dumps(value, indent=1, ensure_ascii=False).removeprefix("{\n") + "\n"
    head = _head(_digest(lines.encode(errors="backslashreplace")))
    write_text(path, head + lines, make_folder=make_folder)


def read_json(path: Path) -> Any:
    """The value of a JSON file in UTF-8, of bounded size and depth, whose numbers are floats or fit one; without its seal.

    Raises FileNotFoundError; VarlabError with the reason for any other content, for another text than was sealed, and
    where the file cannot be read.
    """
    content = read_bytes(path, LARGEST)
    try:
        value = parse_json(content)
    except ValueError as error:
        raise VarlabError(f"{path} cannot be read ({error}): write it again, or remove it.") from None
    if isinstance(value, dict) and _SEAL in value:
        head = _head(str(digest := value.pop(_SEAL))).encode(errors="replace")
        if not content.startswith(head) or _digest(content[len(head) :]) != digest:
            raise VarlabError(
                f"{path} is damaged, or was edited: it is not what varlab wrote. Restore it from a copy, or, if you edited it, "
                f'remove its line "{_SEAL}".'
            )
    return value


def is_sealed(path: Path) -> bool:
    """Whether a JSON file, which can be read, was written with the digest of its text."""
    return read_bytes(path, LARGEST).startswith(_head("")[:-3].encode())


def _head(digest: str) -> str:
    return f'{{\n "{_SEAL}": "{digest}",\n'


def _digest(lines: bytes) -> str:
    return hashlib.sha256(lines).hexdigest()


def parse_json(content: bytes) -> Any:
    """A JSON value, bounded as in ``read_json``. Raises ValueError with the reason."""
    try:
        # A call for each number takes as long as all else, so only a text with very long ones gets it.
        is_usual = _LONG_DIGITS not in content.translate(_TO_ZERO)
        value = json.loads(content.decode(), parse_int=int if is_usual else _bounded_int)
        if not _is_shallow(content):
            _check_depth(value, _DEEPEST)
    except RecursionError:
        raise ValueError(f"its lists and objects are nested more than {_DEEPEST} deep") from None
    return value


def _bounded_int(digits: str) -> int:
    if len(digits) > _LONGEST_NUMBER:
        raise ValueError(f"a number has {len(digits)} digits")
    return int(digits)


def _is_shallow(content: bytes) -> bool:
    """Whether the brackets of a JSON text close each other within the bound; False also where strings hold brackets."""
    brackets = content.translate(None, _NO_BRACKETS)
    for _ in range(_DEEPEST):
        if not brackets:
            return True
        brackets = brackets.replace(b"[]", b"").replace(b"{}", b"")
    return False


def _check_depth(value: object, left: int) -> None:
    if left == 0:
        raise RecursionError
    items = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for item in items:
        if type(item) in (dict, list):
            _check_depth(item, left - 1)
