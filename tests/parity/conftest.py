"""Each golden model is imported once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from tests.parity.imported import import_golden


@pytest.fixture(scope="session")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """name → the run directory that ``varlab import`` made of the golden model's official files."""
    return cache(lambda name: import_golden(name, tmp_path_factory.mktemp(name)))
