"""The comments in a configuration file: they say what its keys are for."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from yaml import MappingNode, Node, SafeLoader, ScalarNode, SequenceNode, compose

__all__ = ["Comments", "description", "read_comments"]

_AFTER_VALUE = re.compile(r"[\s:]*#\s?(.*)")


@dataclass(frozen=True)
class Comments:
    """What a file says about its keys (``optimizer.lr``) and about the groups of its defaults list (``crop@data.crop``)."""

    keys: dict[str, str] = field(default_factory=dict)
    groups: dict[str, str] = field(default_factory=dict)

    def update(self, other: Comments) -> None:
        """Add the comments of a file that comes later."""
        self.keys.update(other.keys)
        self.groups.update(other.groups)


def description(file: Path) -> list[str]:
    """The lines of the comment at the top of a file, which need not be YAML."""
    lines: list[str] = []
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line[1:].removeprefix(" "))
    return lines


def read_comments(file: Path, package: str) -> Comments:
    """The comments beside and above the keys of a file.

    package: the dotted key under which Hydra puts the file's content; empty for the root.
    """
    text = file.read_text(encoding="utf-8")
    root = compose(text, Loader=SafeLoader)
    reader = _Reader(text.splitlines())
    prefix = f"{package}." if package else ""
    comments = Comments()
    for key, value in root.value if isinstance(root, MappingNode) else ():
        if key.value == "defaults":
            comments.groups.update(reader.groups(value, prefix))
    if isinstance(root, MappingNode):
        comments.keys.update(reader.keys(root, prefix))
    return comments


class _Reader:
    def __init__(self, lines: Sequence[str]):
        self._lines = lines

    def keys(self, node: MappingNode, prefix: str) -> Iterator[tuple[str, str]]:
        for key, value in node.value:
            if comment := self._comment(key, value):
                yield f"{prefix}{key.value}", comment
            if isinstance(value, MappingNode) and not value.flow_style:
                yield from self.keys(value, f"{prefix}{key.value}.")

    def groups(self, node: Node, prefix: str) -> Iterator[tuple[str, str]]:
        items = node.value if isinstance(node, SequenceNode) else ()
        for key, value in (pair for item in items if isinstance(item, MappingNode) for pair in item.value):
            group, at, package = key.value.split(" ")[-1].lstrip("/").partition("@")
            if comment := self._comment(key, value):
                yield f"{group}@{prefix}{package}" if at else group, comment

    def _comment(self, key: ScalarNode, value: Node) -> str:
        inside = isinstance(value, MappingNode | SequenceNode) and not value.flow_style
        mark = key.end_mark if inside else value.end_mark
        beside = _AFTER_VALUE.match(self._lines[mark.line][mark.column :]) if mark.line < len(self._lines) else None
        return " ".join([*self._above(key), *([beside[1]] if beside else [])])

    def _above(self, key: ScalarNode) -> list[str]:
        """The comment lines directly above a key, unless they describe the whole file."""
        first = last = key.start_mark.line
        start = " " * key.start_mark.column + "#"
        while first and self._lines[first - 1].startswith(start):
            first -= 1
        return [line.strip().lstrip("#").strip() for line in self._lines[first:last]] if first else []
