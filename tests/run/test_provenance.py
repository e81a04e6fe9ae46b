"""What a run was made with is found out, or honestly absent."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from varlab.run import provenance


def git(folder: Path, *arguments: str) -> None:
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    package = tmp_path / "package"
    package.mkdir()
    (package / "a.py").write_text("x = 1\n")
    git(tmp_path, "init")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "first")
    return package


def test_commit_and_uncommitted_changes(checkout: Path) -> None:
    assert provenance.code(checkout)["diff"] == ""
    (checkout / "a.py").write_text("x = 2\n")
    (checkout / "b.py").write_text("")
    code = provenance.code(checkout)
    assert len(code["commit"]) == 40
    assert "-x = 1\n+x = 2" in code["diff"]
    before = code["untracked"]
    assert list(before) == ["package/b.py"]
    (checkout / "b.py").write_text("y = 1\n")
    assert provenance.code(checkout)["untracked"]["package/b.py"] != before["package/b.py"]


def test_a_huge_diff_is_cut(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance, "DIFF_LIMIT", 20)
    (checkout / "a.py").write_text("x = 2\n" * 100)
    assert "cut after 20 characters" in provenance.code(checkout)["diff"]


def test_somebody_elses_repository_is_not_ours(checkout: Path) -> None:
    installed = checkout.parent / "site-packages" / "varlab"
    installed.mkdir(parents=True)
    assert provenance.code(installed)["commit"] is None


def test_the_command_is_recorded_without_what_shortens_its_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(provenance.sys, "argv", ["/usr/bin/varlab", "train", "out=a b", "--brief"])
    assert provenance.command_line() == "varlab train 'out=a b'"
