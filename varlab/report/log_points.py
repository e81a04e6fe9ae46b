"""``metrics.jsonl``, read in a stream: every line of a usual file, and of a long one an even choice of its lines."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO

from varlab.config import Config
from varlab.errors import VarlabError
from varlab.files import require_plain
from varlab.json_file import parse_json

__all__ = ["read_log_points"]

_KEPT = 4096  # lines of a kind, at least, where there are more
_KEPT_BYTES = 2 << 20  # of the lines of a kind
_KINDS = 6
_LONGEST = 1 << 16  # bytes of a line


class _Choice:
    """Lines of one kind, evenly spaced in the order of the file, and the last one."""

    def __init__(self) -> None:
        self._lines: list[tuple[int, bytes]] = []
        self._last: tuple[int, bytes] = (0, b"")
        self._seen, self._step, self._bytes = 0, 1, 0

    def add(self, number: int, line: bytes) -> None:
        self._last = number, line
        if self._seen % self._step == 0:
            self._lines.append(self._last)
            self._bytes += len(line)
            if len(self._lines) == 2 * _KEPT or self._bytes > _KEPT_BYTES:
                del self._lines[1::2]
                self._step *= 2
                self._bytes = sum(len(kept) for _, kept in self._lines)
        self._seen += 1

    def lines(self) -> list[tuple[int, bytes]]:
        return self._lines if self._lines[-1] == self._last else [*self._lines, self._last]


def read_log_points(path: Path) -> tuple[list[Config], str]:
    """The log points of a file in order, none where there is no file; and a sentence about what could not be read.

    A half-written last line, which a killed run leaves, is passed over. Lines of a kind have equally many keys: so the
    few validations of a long training are not lost among its log points.
    """
    try:
        with require_plain(path).open("rb") as file:
            lines = _chosen_lines(file)
    except FileNotFoundError:
        return [], ""
    except OSError as error:
        return [], f"{path} cannot be read ({error.strerror or error}): make it readable."
    except VarlabError as error:
        return [], str(error)
    points = _parse_lines(lines)
    broken = [number + 1 for (number, _), point in zip(lines[:-1], points, strict=False) if not point]
    fault = f"{path} has {len(broken)} lines that hold no log point, as line {broken[0]}." if broken else ""
    return [point for point in points if point], fault


def _chosen_lines(file: BinaryIO) -> list[tuple[int, bytes]]:
    """(number, line): of a short file all, else at most some thousand of each kind."""
    head = file.read(_LONGEST)
    if len(head) < _LONGEST:
        return [(number, line) for number, line in enumerate(head.split(b"\n")) if line.strip()]
    file.seek(0)
    kinds: dict[int, _Choice] = {}
    for number, line in enumerate(iter(partial(file.readline, _LONGEST), b"")):
        kind = line.count(b'":')
        if kind not in kinds:
            kind = kind if len(kinds) < _KINDS else -1
            kinds.setdefault(kind, _Choice())
        kinds[kind].add(number, line if len(line) < _LONGEST else b"{")
    chosen = sorted(line for choice in kinds.values() for line in choice.lines())
    return [(number, line) for number, line in chosen if line.strip()]


def _parse_lines(lines: Sequence[tuple[int, bytes]]) -> list[Config]:
    """A JSON object for each line, empty where it is none; all lines at once if they are sound, which is faster."""
    texts = [line for _, line in lines]
    try:
        values: Sequence[object] = parse_json(b"[%s]" % b",".join(texts))
    except ValueError:
        values = ()
    if len(values) != len(texts):
        values = [_parse_line(text) for text in texts]
    return [value if isinstance(value, dict) else {} for value in values]


def _parse_line(text: bytes) -> object:
    try:
        return parse_json(text)
    except ValueError:
        return None
