"""The fake command, in a folder of its own, called as the console script is."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli import fake
from varlab.cli.main import main

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, with the fake command's configuration beside it; child processes find these tests."""
    fake.write_conf(tmp_path / "conf")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    monkeypatch.setenv("PYTHONPATH", path)
    return tmp_path / "work"


@pytest.fixture
def varlab(workplace: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """``varlab("fake", "seed=1")`` → (exit code, standard output, standard error)."""

    def call(*arguments: str) -> tuple[int, str, str]:
        here = ("--config-dir", str(workplace.parent / "conf")) if arguments[:1] == ("fake",) else ()
        code = main([*arguments, *here], commands=fake.COMMANDS)
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
