"""Every command on a disk that fails: one sentence with the file and a remedy, an exit code, no traceback, no drafts."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests import small
from tests.disk import VANISHED, Disk
from varlab.cli.main import main

JUDGE = [*small.RUNS["judge"], "budget.images=64"]
GENERATOR = [*small.RUNS["raster"], "budget.images=64", "pictures.every=32", "checkpoint.every=32"]

MISSING = ("run `varlab", "is not a run directory", "holds no")
"""What a command says that finds its own input gone."""

COMMANDS: dict[str, tuple[list[str], str]] = {
    "pack": (["pack", "source=folder", "path={here}/photos", "source.size=16"], "index.json"),
    "index": (["index", "{here}/shards"], "index.json"),
    "check": (["index", "{here}/shards", "check=true"], "check.json"),
    "bench": (["bench", "data.path={here}/shards", "seconds=0.01", "rounds=1"], "bench.json"),
    "classifier": (["train", *JUDGE], "metrics.jsonl"),
    "generator": (["train", *GENERATOR], "last.ckpt"),
    "sweep": (["train", "-m", *JUDGE, "seed=3"], "weights.safetensors"),
    "encode": (["encode", "runs/single"], "tokens.json"),
    "sample": (["sample", "runs/raster", "n=2"], "samples.npz"),
    "edit": (["edit", "runs/raster", "task=inpaint", "image={here}/photos/a/0.png", "box=[0,0,0.5,0.5]"], "edit.npz"),
    "evaluate": (["evaluate", "{here}/disk/single"], "scores"),
    "export": (["export", "runs/single", "format=vqgan"], "tokenizer.pth"),
    "import": (["import", "format=vqgan", "tokenizer={here}/exported/tokenizer.pth", "scales=[[4,4]]"], "weights"),
    "report": (["report", "runs/single"], "report.html"),
}
"""Arguments, and the (beginning of the) name of a file that is written late."""


@pytest.fixture
def disk(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Disk:
    for kind in "ab":
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for i in range(4):
            Image.new("RGB", (16, 16), (50 * i, 20, ord(kind))).save(tmp_path / "photos" / kind / f"{i}.png")
    (tmp_path / "disk").mkdir()
    return Disk(tmp_path / "disk", monkeypatch)


def call(command: str, disk: Disk, fault: int, at: int | str) -> int:
    """The exit code of a command whose output lies on the disk, which fails at a moment."""
    here = disk.folder.parent
    disk.fails(0, 0)
    if command == "evaluate":
        shutil.copytree("runs/single", disk.folder / "single")
    if "{here}/shards" in str(COMMANDS[command]) and not (here / "shards").exists():
        assert (
            main(["pack", f"path={here / 'photos'}", "source=folder", "source.size=16", f"out={here / 'shards'}"]) == 0
        )
    if command == "import" and not (here / "exported").exists():
        assert main(["export", "runs/single", "format=vqgan", f"out={here / 'exported'}"]) == 0
    name, *arguments = (word.format(here=here) for word in COMMANDS[command][0])
    disk.fails(fault, at)
    return main([name, f"out={disk.folder / 'out'}", *arguments])


def check(command: str, code: int, disk: Disk, said: str, *, ways: tuple[str, ...] = ()) -> None:
    """ways: remedies that the sentence may also name."""
    assert code == 1, said
    assert "Traceback" not in said and "unexpected" not in said, said
    last = said.strip().splitlines()[-1]
    assert str(disk.folder) in last, said
    assert any(way in last for way in ("run the same command again", "out=", *ways)), said
    if disk.fault not in (errno.EROFS, VANISHED):
        assert not [path for path in disk.folder.rglob("*") if path.name.endswith((".tmp", ".part", ".partial"))]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_disk_that_is_full_when_the_work_is_done(
    command: str, disk: Disk, capsys: pytest.CaptureFixture[str]
) -> None:
    code = call(command, disk, errno.ENOSPC, COMMANDS[command][1])
    check(command, code, disk, capsys.readouterr().err)


@pytest.mark.parametrize("command", COMMANDS)
def test_a_disk_that_is_read_only(command: str, disk: Disk, capsys: pytest.CaptureFixture[str]) -> None:
    code = call(command, disk, errno.EROFS, 0)
    check(command, code, disk, capsys.readouterr().err)
    assert not (disk.folder / "out").exists()


@pytest.mark.parametrize("command", ["classifier", "export"])
def test_a_folder_that_is_removed(command: str, disk: Disk, capsys: pytest.CaptureFixture[str]) -> None:
    code = call(command, disk, VANISHED, COMMANDS[command][1])
    check(command, code, disk, capsys.readouterr().err)


def test_encode_does_not_wait_for_shards_that_vanished(
    disk: Disk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The folder is removed between two shards: the second makes it again, and nobody writes the first again."""
    from varlab.recipe.token_shards.token_writer import TokenWriter

    plain = TokenWriter._encode

    def vanish(writer: TokenWriter, part: Any) -> Any:
        if part.split == "val":
            shutil.rmtree(disk.folder / "out")
        return plain(writer, part)

    monkeypatch.setattr(TokenWriter, "_encode", vanish)
    code = call("encode", disk, 0, 0)
    check("encode", code, disk, capsys.readouterr().err)


@pytest.mark.parametrize("command", ["report", "index"])
def test_a_folder_that_vanishes_between_two_files(
    command: str, disk: Disk, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Right before a file is made, or as soon as it has its name: the result is whole, or its loss is a sentence."""
    assert call(command, disk, 0, 0) == 0
    whole = files(disk)
    replace = os.replace
    for name in whole:

        def vanish(source: Any, target: Any, name: str = name) -> None:
            replace(source, target)
            if Path(target).name == name:
                shutil.rmtree(disk.folder)

        for is_after in (False, True):
            shutil.rmtree(disk.folder, ignore_errors=True)
            disk.folder.mkdir()
            monkeypatch.setattr(os, "replace", vanish if is_after else replace)
            code = call(command, disk, 0 if is_after else VANISHED, name)
            said = capsys.readouterr().err
            if code or is_after:
                check(command, code, disk, said)
            else:
                assert files(disk) == whole


def files(disk: Disk) -> list[str]:
    return sorted(path.name for path in disk.folder.rglob("*") if path.is_file())


@pytest.mark.slow
@pytest.mark.parametrize("fault", [errno.ENOSPC, VANISHED])
@pytest.mark.parametrize("command", COMMANDS)
def test_every_moment(command: str, fault: int, disk: Disk, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(command, disk, 0, 0) == 0
    for moment in range(disk.moments):
        disk.fails(0, 0)
        shutil.rmtree(disk.folder, ignore_errors=True)
        disk.folder.mkdir()
        capsys.readouterr()
        code = call(command, disk, fault, moment)
        said = capsys.readouterr().err
        if code:
            check(command, code, disk, said, ways=MISSING if fault == VANISHED else ())
        else:  # the folder was removed before anything lay in it, or the table of a sweep could not be written
            assert fault == VANISHED or "could not be written" in said, said
