"""``varlab start`` from a folder to pictures, on a folder that trains in seconds."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from PIL import Image, ImageDraw

from varlab.cli.main import main

SMALL = (
    "size=16",
    "minutes=0.1",
    "limits.minutes=0",
    "orders=[raster]",
    "trial.updates=6",
    "trial.unmeasured=2",
    "cpu.tokenizer=[tokenizer.channels=8,tokenizer.groups=4]",
    "cpu.generator=[transformer.width=32,transformer.depth=1,transformer.heads=2]",
)


def triangles(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for i in range(count):
        picture = Image.new("RGB", (24, 20), (i * 37 % 256, 200, 255))
        ImageDraw.Draw(picture).polygon([(i % 12, 18), (i % 12 + 10, 18), (i % 12 + 5, 4)], fill=(200, i * 91 % 256, 0))
        picture.save(folder / f"{i}.png")
    return folder


def test_too_few_pictures_are_refused_before_anything_is_written(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    triangles(tmp_path / "few", 8)
    assert main(["start", str(tmp_path / "few"), f"out={tmp_path / 'out'}", *SMALL]) == 1
    said = capfd.readouterr()
    assert "holds 8 pictures: give a folder with at least 20" in said.err and not said.out
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_flat_folder_becomes_pictures_scores_and_a_report(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "my run"
    arguments = ["start", str(triangles(tmp_path / "flat", 60)), f"out={out}", *SMALL]
    assert main(arguments) == 0
    said = capfd.readouterr().out
    assert "FID ratio" in said and "The plan:" in said
    for file in ("report.html", "samples/raster/pictures/samples.png", "tokenizer/single/run.json"):
        assert (out / file).is_file()
        assert file.endswith(".json") or str(out / file) in said
    record = json.loads((out / "generator" / "raster" / "run.json").read_text())
    assert record["outcome"]["state"] == "finished"

    lines = (out / "commands.sh").read_text().splitlines()
    script = [shlex.split(line.partition(" & beside")[0]) for line in lines if line.startswith("varlab ")]
    done = [shlex.split(command) for command in json.loads((out / "start.json").read_text())["done"]]
    assert sorted(script) == sorted(done)

    before = {file: file.stat().st_mtime_ns for file in out.rglob("*") if file.suffix in (".json", ".png", ".html")}
    assert main(arguments) == 0
    again = capfd.readouterr().out
    assert "FID ratio" in again and "== " not in again
    assert before == {file: file.stat().st_mtime_ns for file in before}
