"""The bar of commands that work through images: at once, with named times, and without a thread before workers are forked."""

from __future__ import annotations

import threading

import pytest

from varlab.cli.progress_bar import progress_bar


def test_it_says_at_once_what_it_waits_for(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    before = threading.active_count()
    with progress_bar("packing") as progress:
        said = capsys.readouterr().err
        assert "packing: waiting for the first images" in said and "passed" in said and "left" in said
        assert threading.active_count() == before
        progress(3, 4)
        assert "75%" in capsys.readouterr().err and threading.active_count() == before + 1
        progress(0, 9, "checking")  # whose workers are not forked yet
        _wait_for_ended_threads()
        assert "checking: waiting for the first images" in capsys.readouterr().err
        assert threading.active_count() == before
        progress(9, 9, "checking")
        assert "checking" in capsys.readouterr().err
    _wait_for_ended_threads()
    assert threading.active_count() == before


def _wait_for_ended_threads() -> None:
    """The bar's own was asked to end."""
    for thread in threading.enumerate():
        if thread is not threading.current_thread():
            thread.join(2)


def test_it_is_silent_elsewhere(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("packing") as progress:
        progress(3, 4)
    assert capsys.readouterr().err == ""
