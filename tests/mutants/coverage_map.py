"""A plugin of pytest: which functions of the science rooms each test runs, those in its fixtures included."""

from __future__ import annotations

import json
import os
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

import pytest

from tests.mutants.mutations import ROOT, science_files

Places = set[tuple[str, int]]
"""(path below the root, first line of a function)."""


class CoverageMap:
    """Writes {test: [seconds, [[path, line], …]]} to a file, one for each worker of xdist."""

    def __init__(self, file: Path):
        self._file = file.with_suffix(f".{os.environ.get('PYTEST_XDIST_WORKER', 'main')}.json")
        self._paths = {str(ROOT / path): path for path in science_files()}
        self._known: dict[CodeType, tuple[str, int] | None] = {}
        self._open: list[Places] = []  # of the test and the fixtures that are being set up
        self._fixtures: dict[str, Places] = defaultdict(set)
        self._tests: dict[str, tuple[float, Places]] = {}

    def _trace(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if code not in self._known:
            path = self._paths.get(code.co_filename)
            self._known[code] = None if path is None else (path, code.co_firstlineno)
        if (place := self._known[code]) is not None:
            for places in self._open:
                places.add(place)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        places: Places = set()
        self._open, start = [places], time.perf_counter()
        sys.settrace(self._trace)
        try:
            return (yield)
        finally:
            sys.settrace(None)
            for name in getattr(item, "fixturenames", ()):
                places |= self._fixtures[name]
            self._tests[item.nodeid] = (time.perf_counter() - start, places)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(self, fixturedef: Any) -> Iterator[None]:
        self._open.append(self._fixtures[fixturedef.argname])
        try:
            return (yield)
        finally:
            self._open.pop()

    def pytest_sessionfinish(self) -> None:
        if self._tests:
            self._file.write_text(json.dumps({test: (s, sorted(places)) for test, (s, places) in self._tests.items()}))


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(CoverageMap(Path(os.environ["MUTANTS_MAP"])))
