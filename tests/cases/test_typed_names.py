"""Folders and classes as people name them, typed without a second pair of quotes; the numbers are those of public reports."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from PIL import Image

from varlab.cli.main import main
from varlab.config import conf_dir
from varlab.data.format.index import read_index


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = tmp_path / "my photos (1)" / "it's été #1 & {写真}"
    for name in ("tench, Tinca tinca", "dog"):
        for i in range(4):
            (folder / name).mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (16, 16), (i * 20, len(name), 0)).save(folder / name / f"{i}.png")
    return folder.relative_to(tmp_path)


def test_row16_folders_with_blanks_brackets_accents_and_quotes(photos: Path) -> None:
    for path, out in ((photos, "out [1] it's"), (f"~/{photos}", "2024")):
        assert main(["pack", "source=folder", f"path={path}", "source.size=16", "workers=0", f"out={out}"]) == 0
    assert read_index("2024").classes == read_index("out [1] it's").classes == ("dog", "tench, Tinca tinca")
    assert main(["index", "out [1] it's", "check=true", "workers=0"]) == 0
    assert main(["report", "out [1] it's", "2024", "out=page (1)"]) == 0 and Path("page (1)/report.html").exists()


def test_row16_a_folder_of_configuration(tmp_path: Path) -> None:
    folder = Path("conf ü (1) #%")
    (folder / "order").mkdir(parents=True)
    shutil.copy(conf_dir() / "order" / "raster.yaml", folder / "order" / "mine.yaml")
    assert main(["check", "order=mine", "--config-dir", str(folder)]) == 0


def test_row26_a_list_of_classes_with_commas(photos: Path) -> None:
    """A single one needs no quotes: tests/cli/test_arguments.py."""
    pack = ("pack", "source=folder", f"path={photos}", "source.size=16", "workers=0")
    assert main([*pack, "out=Y"]) == 0
    again = ("pack", "source=tars", "path=Y", "source.size=16", "workers=0")
    assert main([*again, "source.classes=[dog,'tench, Tinca tinca']", "out=Z"]) == 0
    assert read_index("Z").classes == ("dog", "tench, Tinca tinca")
