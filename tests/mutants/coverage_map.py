"""A plugin of pytest: which functions of the science rooms each test runs, those in its fixtures included.

Each function calls the map first. Python's own tracing would follow the calls of all libraries, which takes as long as the
tests, and would miss other threads.
"""

from __future__ import annotations

import ast
import builtins
import json
import os
from collections import defaultdict
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.mutants.mutations import ROOT, science_files
from tests.mutants.replaced import Replaced

Places = set[tuple[str, int]]
"""(path below the root, first line of a function)."""
_NAME = "reached_by_a_test"


class CoverageMap:
    """Writes a line [test, seconds, [[path, line], …]] for each test to a file, one for each worker of xdist."""

    def __init__(self, file: Path):
        self._file = file.with_suffix(f".{os.environ.get('PYTEST_XDIST_WORKER', 'main')}.jsonl")
        self._open: list[Places] = []  # of the test and the fixtures that are being set up
        self._fixtures: dict[str, Places] = defaultdict(set)
        self._setup: dict[str, float] = defaultdict(float)  # seconds of each fixture: every mutant sets it up once more
        self._in_fixtures = 0.0

    def reached(self, path: str, line: int) -> None:
        for places in self._open:
            places.add((path, line))

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        places: Places = set()
        self._open, start, before = [places], _seconds(), self._in_fixtures
        try:
            return (yield)
        finally:
            seconds = _seconds() - start - (self._in_fixtures - before)
            for name in getattr(item, "fixturenames", ()):
                places |= self._fixtures[name]
                seconds += self._setup[name]
            with self._file.open("a") as file:
                file.write(json.dumps([item.nodeid, seconds, sorted(places)]) + "\n")

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        self._open.append(self._fixtures[fixturedef.argname])
        start, before = _seconds(), self._in_fixtures
        try:
            return (yield)
        finally:
            self._open.pop()
            own = _seconds() - start - (self._in_fixtures - before)
            self._in_fixtures += own
            self._setup[fixturedef.argname] = max(self._setup[fixturedef.argname], own)


def _seconds() -> float:
    """Of the processor, those of ended child processes included: a busy machine makes no test slower."""
    return sum(os.times()[:4])


def noted(path: str, source: bytes) -> ast.Module:
    """A module each function of which first says that it is called."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            line = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            first = node.body[0]
            documented = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
            (call,) = ast.parse(f"{_NAME}({path!r}, {line})").body
            node.body.insert(int(documented), ast.copy_location(call, first))
    return ast.fix_missing_locations(tree)


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Before any conftest imports what is to be noted."""
    coverage = CoverageMap(Path(os.environ["MUTANTS_MAP"]))
    setattr(builtins, _NAME, coverage.reached)
    sources = {path: partial(noted, path, (ROOT / path).read_bytes()) for path in science_files()}
    replaced = Replaced(sources)
    replaced.pytest_sessionstart()
    early_config.pluginmanager.register(coverage)
    early_config.pluginmanager.register(replaced)
