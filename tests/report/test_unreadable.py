"""Neighbours that cannot be read: each has a row with the reason, and no other run suffers."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from varlab.report import find_runs, write_report, write_study

from . import make_runs


def header_only(side: int) -> bytes:
    """A PNG that promises side × side pixels."""
    head = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + head + struct.pack(">I", zlib.crc32(head))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 1 << 20) + b"IDAT"


def pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


RECORDS: dict[str, Callable[[Path], object]] = {
    "deep": lambda file: file.write_text("[" * 200_000),
    "overrides": lambda file: file.write_text('{"overrides": 5, "outcome": {"state": "finished"}}'),
    "build": lambda file: file.write_text('{"build": 5, "outcome": {"state": "finished"}}'),
    "encoding": lambda file: file.write_bytes(b"\xff\xfe\x00"),
    "pipe": pipe,
}


@pytest.mark.parametrize("name", RECORDS)
def test_a_damaged_record_is_a_row(tmp_path: Path, name: str) -> None:
    sound = make_runs.generator(tmp_path / "runs" / "sound", order="raster")
    broken = make_runs.generator(tmp_path / "runs" / name, order="raster", seed=1)
    RECORDS[name](broken / "run.json")
    text = write_report([tmp_path / "runs"], tmp_path, title="t").html.read_text()
    assert "Could not be read" in text and f"<code>{broken.as_posix()}</code>" in text
    assert '<span class="state unreadable">unreadable</span>' in text
    assert f"<code>{sound.as_posix()}</code>" in text and len(find_runs([tmp_path / "runs"])) == 2


PARTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "pictures/samples.png": ("Image size (3600000000 pixels)", lambda file: file.write_bytes(header_only(60_000))),
    "pictures/reconstructions.png": ("9000×9000 pixels", lambda file: file.write_bytes(header_only(9000))),
    "pictures/real.png": ("no plain file", pipe),
    "pictures/growth.png": ("is neither PNG nor JPEG", lambda file: file.write_bytes(b"\x89PNG broken")),
    "metrics.jsonl": ("1 lines that hold no log point, as line 2", lambda file: file.write_bytes(
        file.read_bytes().replace(b"\n", b"\n\xff\xff\n", 1))),
    "scores/a.json": ("scores is not a JSON object", lambda file: file.write_text('{"scores": [1]}')),
    "scores/b.json": ("nested more than", lambda file: file.write_text("[" * 200_000)),
}  # fmt: skip


@pytest.mark.parametrize("part", PARTS)
def test_a_damaged_part_is_named_and_the_run_stays(tmp_path: Path, part: str) -> None:
    run = make_runs.generator(tmp_path / "runs" / "a", order="raster", pictures=True)
    reason, damage = PARTS[part]
    damage(run / part)
    text = write_report([tmp_path / "runs"], tmp_path, title="t").html.read_text()
    assert "Could not be read" in text and reason in text and "One generator: raster." in text


def test_a_pipe_in_the_place_of_the_metrics_does_not_hang(tmp_path: Path) -> None:
    run = make_runs.generator(tmp_path / "a", order="raster")
    pipe(run / "metrics.jsonl")
    (read,) = find_runs([run])
    assert read.finished and read.metrics == [] and "no plain file" in read.faults[0]


def test_an_unreadable_folder_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_runs.generator(tmp_path / "a", order="raster")
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    runs = find_runs([tmp_path])
    assert [(run.path.name, run.state) for run in runs] == [("a", "finished"), ("locked", "unreadable")]
    assert "Permission denied" in runs[1].error


def test_a_run_that_vanishes_while_it_is_read_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from varlab.report import runs as module

    for name in ("a", "b"):
        make_runs.generator(tmp_path / name, order="raster")
    read = module.read_run

    def vanishing(path: Path) -> module.Run:
        shutil.rmtree(tmp_path / "b", ignore_errors=True)
        return read(path)

    monkeypatch.setattr(module, "read_run", vanishing)
    assert [run.state for run in find_runs([tmp_path])] == ["finished", "unreadable"]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.just(10**299),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)


def places(value: object, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, item in inner for place in places(item, (*path, key)))]


def changed(value: Any, path: tuple[Any, ...], new: object) -> Any:
    if not path:
        return new
    copy = value.copy()
    copy[path[0]] = changed(value[path[0]], path[1:], new)
    return copy


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pair")
    make_runs.generator(folder / "sound", order="raster")
    make_runs.regressor(folder / "other", report={"title": "Regressors", "columns": {"error": "min"}})
    make_runs.generator(folder / "other", order="next_scale", fid=12)
    report = {"title": "x", "columns": {"error": "min"}}
    record = json.loads((folder / "other" / "run.json").read_text())
    record["config"] |= {"report": report, "kind": "generator"}
    (folder / "other" / "run.json").write_text(json.dumps(record | {"resumes": [{"repeated": 1, "from": 2}]}))
    (folder / "README.md").write_text("<!-- t -->\n<!-- /t -->\n")
    return folder


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_anywhere_leaves_the_other_run_in_the_report(pair: Path, tmp_path: Path, data: st.DataObject) -> None:
    score = next((pair / "other" / "scores").glob("*.json"))
    file = data.draw(st.sampled_from([pair / "other" / "run.json", pair / "other" / "metrics.jsonl", score]))
    sound = file.read_text()
    line, *rest = sound.splitlines(keepends=True) if file.suffix == ".jsonl" else [sound]
    value = json.loads(line)
    damaged = changed(value, data.draw(st.sampled_from(places(value))), data.draw(JSON))
    try:
        file.write_text(json.dumps(damaged) + "\n" + "".join(rest))
        text = write_report([pair], tmp_path, title="t").html.read_text()
        write_study([pair], pair / "README.md", section="t")
    finally:
        file.write_text(sound)
    assert f"<code>{(pair / 'sound').as_posix()}</code>" in text
