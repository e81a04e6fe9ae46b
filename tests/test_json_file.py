"""Sealed JSON: what was written is read, and any other text is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from varlab.errors import VarlabError
from varlab.json_file import read_json, write_json, write_sealed_json

VALUES = st.recursive(st.none() | st.integers() | st.booleans() | st.text(), lambda x: st.lists(x, max_size=3))


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("json") / "run.json"


@given(value=st.dictionaries(st.text().filter(lambda key: key != "sha256"), VALUES, min_size=1, max_size=4))
def test_what_was_written_is_read(value: dict[str, object], file: Path) -> None:
    write_sealed_json(file, value)
    assert read_json(file) == value


@given(at=st.integers(0, 200), bit=st.integers(0, 7))
def test_no_flipped_bit_gives_another_value(at: int, bit: int, file: Path) -> None:
    value = {"command": "train", "outcome": {"state": "finished", "images": 123456}, "name": "größe"}
    write_sealed_json(file, value)
    content = bytearray(file.read_bytes())
    content[at % len(content)] ^= 1 << bit
    file.write_bytes(content)
    try:
        read = read_json(file)
    except VarlabError as error:
        assert str(file) in str(error)
    else:  # the name of the seal itself
        assert {key: read.get(key) for key in value} == value


def test_an_edited_file_says_how_to_keep_the_edit(tmp_path: Path) -> None:
    file = tmp_path / "run.json"
    write_sealed_json(file, {"command": "train"})
    file.write_text(file.read_text().replace("train", "pack"))
    with pytest.raises(VarlabError, match=r'run\.json is damaged, or was edited.* remove its line "sha256"'):
        read_json(file)
    file.write_text("".join(line for line in file.read_text().splitlines(True) if '"sha256"' not in line))
    assert read_json(file) == {"command": "pack"}


def test_files_without_a_seal_are_read(tmp_path: Path) -> None:
    write_json(tmp_path / "old.json", {"a": 1})
    assert read_json(tmp_path / "old.json") == {"a": 1}
    write_sealed_json(tmp_path / "new.json", {"b": 2})
    assert read_json(tmp_path / "new.json") == {"b": 2}
    (tmp_path / "again.json").write_text(json.dumps(json.loads((tmp_path / "new.json").read_text())))
    with pytest.raises(VarlabError, match="is damaged, or was edited"):
        read_json(tmp_path / "again.json")
