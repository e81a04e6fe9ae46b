"""What reaches the terminal: no control characters of a stranger's record."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from varlab.files import printable
from varlab.launch import terminal
from varlab.launch.terminal import say, show_table

EVIL = "\x1b]0;owned\x07\x1b[31mred\r\x9b2J\u202e"


@given(st.text())
def test_no_control_character_is_printable(text: str) -> None:
    shown = printable(text)
    assert all(c in "\n\t" or (ord(c) >= 32 and not 0x7F <= ord(c) <= 0x9F) for c in shown)
    shown.encode()
    assert printable(shown) == shown


@pytest.mark.parametrize("coloured", [False, True])
def test_log_lines_and_tracebacks_are_escaped(
    coloured: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "dumb")
    handler = terminal._rich_handler() if coloured else terminal._plain_handler()
    try:
        raise ValueError(EVIL)
    except ValueError:
        record = logging.LogRecord("x", logging.ERROR, "f", 1, "state %s", (EVIL,), sys.exc_info())
    handler.handle(record)
    said = capsys.readouterr().err
    assert "\\x1b[31m" in said and not {"\x1b", "\x07", "\x9b", "\u202e"} & set(said)


def test_texts_and_tables_are_escaped(capsys: pytest.CaptureFixture[str]) -> None:
    say(EVIL)
    say(EVIL, error=True)
    show_table(EVIL, ("class",), [(EVIL,), ("[red]x",)])
    out, err = capsys.readouterr()
    assert not {"\x1b", "\x07", "\x9b"} & set(out + err) and "[red]x" in err


def test_the_state_of_a_record_reaches_the_terminal_escaped(varlab, workplace: Path) -> None:
    (workplace / "evil").mkdir()
    (workplace / "evil" / "run.json").write_text('{"outcome": {"state": "finished"}, "command": "\\u001b[31m"}')
    code, out, err = varlab("fake", "out=evil", "action=work")
    assert code == 1 and "\x1b" not in out + err
    assert "holds a run of 'varlab \\x1b[31m'" in err


def test_torch_warns_and_says_nothing_else() -> None:
    code = """
import logging
from varlab.launch import terminal
terminal.configure()
logging.getLogger("torch._subclasses.fake_tensor").info("FakeTensor cache stats:")
logging.getLogger("torch").warning("slow")
logging.getLogger("varlab.run").info("a run")
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    assert said.splitlines() == ["warning: slow", "a run"]


def test_brief_leaves_out_details_and_no_other_warning() -> None:
    code = """
import logging
from varlab.launch import terminal
from varlab.recipe.preflight.data_facts import note_leakage
from varlab.cli.conclusion import say_next
terminal.configure()
terminal.leave_out_details()
assert note_leakage("X", "3 of 4 val images") == "3 of 4 val images"
say_next(None, "varlab report")
logging.getLogger("varlab.run").info("a run")
logging.getLogger("varlab.run").warning("slow")
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    assert said.splitlines() == ["a run", "warning: slow"]


def test_only_the_terminal_prints() -> None:
    """Every other module says what it says through it."""
    package = Path(terminal.__file__).parents[1]
    allowed = {"terminal.py", "progress_bar.py", "progress.py", "train.py"}  # progress: numbers of this process
    for file in package.rglob("*.py"):
        if file.name not in allowed:
            text = file.read_text()
            assert " print(" not in text and "Console(" not in text and "stderr.write" not in text, file


def test_a_command_is_heard_after_someone_changed_the_level() -> None:
    code = """
import logging
from varlab.launch import terminal
for _ in range(2):
    terminal.configure()
    logging.getLogger("varlab.run").info("a run")
    logging.getLogger().setLevel(logging.WARNING)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    assert said.splitlines() == ["a run", "a run"]
