"""Modules whose code is given instead of read: a mutant, or functions that note when they are called."""

from __future__ import annotations

import ast
import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Mapping

import pytest

from tests.mutants.mutations import ROOT


class _Loader(importlib.machinery.SourceFileLoader):
    """Compiles what is given, and neither reads nor writes compiled files."""

    def __init__(self, name: str, path: str, source: Callable[[], bytes | ast.Module]):
        super().__init__(name, path)
        self._source = source

    def get_code(self, fullname: str) -> object:  # type: ignore[override]
        return compile(self._source(), self.path, "exec", dont_inherit=True)


class Replaced(importlib.abc.MetaPathFinder):
    """Also a plugin of pytest, whose own finder takes the modules of ``-p varlab`` unless this one stands before it.

    sources: what each file, by its path below the root, is compiled from.
    """

    def __init__(self, sources: Mapping[str, Callable[[], bytes | ast.Module]]):
        self._loaders = {}
        for path, source in sources.items():
            name = path.removesuffix(".py").replace("/", ".")
            self._loaders[name] = _Loader(name, str(ROOT / path), source)

    def imported(self) -> set[str]:
        """The modules that are imported already, and so are not replaced."""
        return sys.modules.keys() & self._loaders.keys()

    def find_spec(self, fullname: str, path: object, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if (loader := self._loaders.get(fullname)) is None:
            return None
        return importlib.util.spec_from_file_location(fullname, loader.path, loader=loader)

    @pytest.hookimpl(tryfirst=True)
    def pytest_load_initial_conftests(self) -> None:
        """Before any conftest imports what is replaced."""
        self.pytest_sessionstart()

    def pytest_sessionstart(self) -> None:
        sys.meta_path[:] = [self, *(finder for finder in sys.meta_path if finder is not self)]
