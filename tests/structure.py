"""Measures of the package's structure: folders, names, sizes of functions, lines of code, ``Any``."""

from __future__ import annotations

import ast
import io
import re
import statistics
import tokenize
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "varlab"
BEFORE = {"files": 209, "code lines": 15_011, "functions": 1_648, "Any": 509}  # at commit d11e80b
_NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def files() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


@cache
def tree(file: Path) -> ast.Module:
    return ast.parse(file.read_text())


def code_lines(file: Path) -> int:
    """Lines with code: blanks, comments and docstrings do not count."""
    source = file.read_text()
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in _NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    return len(lines - _docstring_lines(tree(file)))


def _docstring_lines(module: ast.Module) -> set[int]:
    lines: set[int] = set()
    for node in ast.walk(module):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.body:
            first = node.body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                lines.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return lines


def functions() -> Iterator[tuple[int, str]]:
    """(lines, "path:name") of every function."""
    for file in files():
        for node in ast.walk(tree(file)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                yield lines, f"{file.relative_to(PACKAGE)}:{node.name}"


def files_per_folder() -> Counter[str]:
    return Counter(str(file.parent.relative_to(PACKAGE)) for file in files())


def same_names() -> dict[str, list[str]]:
    """Module file names that stand in more than one folder."""
    places = defaultdict(list)
    for file in files():
        if file.name != "__init__.py":
            places[file.name].append(str(file.parent.relative_to(PACKAGE)))
    return {name: folders for name, folders in places.items() if len(folders) > 1}


def same_classes() -> dict[str, list[str]]:
    """Public classes whose name is defined more than once."""
    places = defaultdict(list)
    for file in files():
        for node in tree(file).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places[node.name].append(str(file.relative_to(PACKAGE)))
    return {name: modules for name, modules in places.items() if len(modules) > 1}


def count_any() -> int:
    return sum(len(re.findall(r"\bAny\b", file.read_text())) for file in files())


def report() -> list[str]:
    """The figures, a line each, beside those of commit d11e80b."""
    lengths = sorted(functions())
    sizes = [length for length, _ in lengths]
    fullest = [(n, folder) for folder, n in files_per_folder().items() if folder != "cli/commands"]
    return [
        f"files: {BEFORE['files']} → {len(files())}, at most {max(fullest)[0]} in a folder ({max(fullest)[1]})",
        f"code lines: {BEFORE['code lines']:,} → {sum(map(code_lines, files())):,}",
        f"functions: {BEFORE['functions']:,} → {len(sizes):,}, lines: median {statistics.median(sizes):g}, "
        f"90% ≤ {sizes[int(0.9 * len(sizes))]}, longest {sizes[-1]} ({lengths[-1][1]})",
        f"Any: {BEFORE['Any']} → {count_any()}",
        f"file names in two folders: {', '.join(sorted(same_names())) or 'none'}",
        f"class names with two meanings: {', '.join(sorted(same_classes())) or 'none'}",
    ]
