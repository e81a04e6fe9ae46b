"""The journal of a run that resumes: what is damaged in it is left out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from varlab.errors import VarlabError
from varlab.tasks.loggers.journal import Journal

LINES = (
    b'{"images": 16, "loss": 3}',
    b"\xff\xfe",
    b'{"images": "many"}',
    b"[1]",
    b"[" * 100_000,
    b'{"images": 32, "loss": 2, "kind": "x"}',
    b'{"images": 48, "loss": 1}',
    b'{"images": 64, "lo',
)


def test_later_and_damaged_lines_are_cut(tmp_path: Path) -> None:
    journal = Journal(directory=tmp_path)
    journal.cut(32)
    assert not list(tmp_path.iterdir()) and journal.last_values() == {}
    journal.path.write_bytes(b"\n".join(LINES))
    assert journal.last_values() == {"images": 48, "loss": 1}
    journal.cut(32)
    assert journal.path.read_bytes() == LINES[0] + b"\n" + LINES[5] + b"\n"
    assert journal.last_values() == {"images": 32, "loss": 2}


def test_a_pipe_in_its_place_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(VarlabError, match=r"metrics\.jsonl cannot be read .it is no plain file"):
        Journal(directory=tmp_path).cut(32)
