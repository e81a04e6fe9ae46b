"""The rules of the package's structure; the figures are printed at the end of every test run (tests/conftest.py)."""

from __future__ import annotations

import re
import statistics

from tests import structure

# File names that stand in two folders on purpose: the two modules are parallel.
PARALLEL = {
    "base.py": "the base class of a room",
    "model.py": "the model of a room",
}
COMMANDS = {file.stem for file in (structure.PACKAGE / "cli" / "commands").glob("*.py")}


def test_no_folder_holds_more_than_a_dozen_files() -> None:
    too_full = {folder: n for folder, n in structure.files_per_folder().items() if n > 12 and folder != "cli/commands"}
    assert not too_full


def test_file_names_are_unique() -> None:
    """But those of parallel modules, and of a command and its room."""
    twice = {
        name: [folder for folder in folders if folder != "cli/commands"]
        for name, folders in structure.same_names().items()
        if name not in PARALLEL
    }
    assert not {name: folders for name, folders in twice.items() if len(folders) > 1}


def test_class_names_have_one_meaning() -> None:
    assert not structure.same_classes()


def test_modules_are_named_by_nouns() -> None:
    """No participle names a module ("looking", "carried")."""
    participle = re.compile(r".+(ing|ed)$")
    known = {"distributed", "scaling", "testing"}  # nouns of the field
    names = [file.relative_to(structure.PACKAGE) for file in structure.files()]
    parts = {part.removesuffix(".py") for name in names for part in name.parts}
    assert not {part for part in parts - known if participle.match(part)}


def test_functions_are_short() -> None:
    lengths = sorted(structure.functions())
    sizes = [length for length, _ in lengths]
    assert statistics.median(sizes) <= 6
    assert sizes[int(0.9 * len(sizes))] <= 17
    assert sizes[-1] <= 60, lengths[-3:]


def test_any_is_rare() -> None:
    assert structure.count_any() <= structure.BEFORE["Any"] // 3
