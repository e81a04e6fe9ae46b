"""A small part of ``make attack``, the same cases each time; and that the attack sees what it looks for."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from tests.attack.damage import BYTES
from tests.attack.formats import FORMATS
from tests.attack.runs import FORMATS as RUNS
from tests.attack.trial import BAD, Format, Reading, Trial

_LONG = ("report", "training, resumed", "encoding, continued", "yaml", "server")  # seconds each: two cases
_SMALL = [form for form in FORMATS if not form.name.startswith("directory: ") or form.name == "directory: load"]


@pytest.mark.parametrize("form", _SMALL, ids=lambda form: form.name)
def test_damaged_files_are_read_right_refused_or_named(form: Format, tmp_path: Path) -> None:
    trial = Trial(form, tmp_path)
    results = [trial.run(number) for number in range(2 if form.name in _LONG else 8)]
    assert not [result for result in results if result.kind in BAD]


# -- readers that do what must not happen --------------------------------------------------------------------------------


def _write(folder: Path) -> None:
    (folder / "file").write_bytes(bytes(range(256)) * 4)


def _believe(folder: Path) -> Reading:
    return {"": (folder / "file").read_bytes()}, False


def _forget(folder: Path) -> Reading:
    read, honest = (folder / "file").read_bytes(), bytes(range(256)) * 4
    return ({"": read} | ({"more": 1} if read == honest else {})), False


def _only_if_damaged(deed: Callable[[Path], object]) -> Callable[[Path], Reading]:
    def read(folder: Path) -> Reading:
        if (folder / "file").read_bytes() != bytes(range(256)) * 4:
            deed(folder)
        return {"": 0}, False

    return read


def _plant(folder: Path) -> None:
    (folder.parent / "planted").write_text("x")


READERS: dict[str, tuple[str, Callable[[Path], Reading]]] = {
    "a value that was not written": ("wrong", _believe),
    "nothing in the place of a value": ("wrong", _forget),
    "a program": ("executed", _only_if_damaged(lambda folder: subprocess.run(["true"], check=True))),
    "a module": ("executed", _only_if_damaged(lambda folder: __import__("this_module_is_nowhere"))),
    "code": ("executed", _only_if_damaged(lambda folder: exec("1 + 1"))),
    "a file elsewhere": ("outside", _only_if_damaged(_plant)),
    "an end that never comes": ("hang", _only_if_damaged(lambda folder: time.sleep(5))),
    "an error without a sentence": ("traceback", _only_if_damaged(lambda folder: {}["x"])),
}


@pytest.mark.parametrize("what", READERS)
def test_a_reader_that_errs_is_found(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.attack.trial._OTHER_KIND", 0.0)
    kind, read = READERS[what]
    trial = Trial(Format("file", _write, read, ("file",), BYTES, seconds=0.3), tmp_path)
    assert kind in {trial.run(number).kind for number in range(3)}


def test_a_case_comes_back(tmp_path: Path) -> None:
    """The same seed and number give the same damage; others give another one."""
    form = next(form for form in RUNS if form.name == "weights")
    first, second = Trial(replace(form, name="weights"), tmp_path / "a"), Trial(form, tmp_path / "b")
    damaged = []
    for trial, folder in ((first, "a"), (second, "b")):
        for number in (1, 2):
            trial.run(number, seed=7)
            damaged.append((tmp_path / folder / "a" / "b" / "case" / "weights.safetensors").read_bytes())
    assert damaged[0] == damaged[2] != damaged[1] == damaged[3]
