"""``varlab bench`` from the command line: lines of JSON, ratios against an earlier run, and refusals in a sentence."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch

from varlab.cli.main import main

TINY = ("batch=2", "rounds=1", "seconds=0.001", "product.cpu=32", "precision=32-true")


def lines(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "bench.jsonl").read_text().splitlines()]


def test_ratios_are_of_equal_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    decode = ("bench", "what=decode", *TINY)
    assert main([*decode, f"out={tmp_path}"]) == 0
    assert main([*decode, f"out={tmp_path}", f"against={tmp_path / 'bench.jsonl'}", "rounds=2"]) == 0
    said = capsys.readouterr().err
    assert "times as fast as" in said and "has no line" not in said
    first, second = lines(tmp_path)
    assert first["settings"] == second["settings"] and first["what"] == "decode" and second["rounds"] == 2
    rates = json.loads((tmp_path / "bench.json").read_text())["images_per_second"]
    assert rates == {"images of token maps": second["images_per_second"]}

    other = ("bench", "what=decode", *TINY, "tokenizer.channels=8", f"out={tmp_path / 'other'}")
    assert main([*other, f"against={tmp_path / 'bench.jsonl'}"]) == 0
    said = capsys.readouterr().err
    assert "images of token maps has no line with the same settings in" in said and "times as fast" not in said
    assert re.search(r"\(tokenizer\.channels is 8, not \d+\)", said.replace("\n", " "))


def test_torchs_own_number_of_threads_is_compared_by_what_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    decode = ("bench", "what=decode", *TINY)
    assert main([*decode, f"threads={torch.get_num_threads()}", f"out={tmp_path}"]) == 0
    assert main([*decode, "threads=null", f"out={tmp_path / 'own'}", f"against={tmp_path / 'bench.jsonl'}"]) == 0
    assert "times as fast" in capsys.readouterr().err


def test_the_table_is_whole_on_80_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["bench", "what=decode", *TINY, f"out={tmp_path}"]) == 0
    said = capsys.readouterr().err
    assert "…" not in said and re.search(r"│ [\d.]+-[\d.]+ +│", said) and "images/s" in said


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("what=nothing",), "what has no 'nothing'"),
        (("what=tokenize", "precision=16-mixed"), "use bf16-mixed or 32-true"),
        (("what=tokenize", "against={here}/none.jsonl"), "name a bench.jsonl of varlab bench"),
        (("what=tokenize", "against={here}/other.jsonl"), "holds no lines of varlab bench"),
        (("what=sample", "run={here}/none"), "is not a run directory"),
        (("what=tokenize", "against={here}/bare.jsonl"), "holds no lines of varlab bench"),
        (("what=train", "device=abacus"), "device=abacus cannot be used here"),
        (("what=train", "rounds=0"), "rounds=0 must be a whole number, at least 1"),
        (("what=decode", "batch=0"), "batch=0 must be a whole number, at least 1"),
        (("what=train", "batch=7.5"), "batch=7.5 must be a whole number, at least 1"),
        (("what=sample", "threads=-2"), "threads=-2 must be a whole number, at least 1, or null"),
        (("what=train", "seconds=-1"), "seconds=-1 is a time"),
    ],
)
def test_refusals(words: tuple[str, ...], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "other.jsonl").write_text('{"a": 1}\n')
    (tmp_path / "bare.jsonl").write_text('{"what": "tokenize", "work": "token maps of images", "settings": {}}\n')
    asked = [word.format(here=tmp_path) for word in words]
    assert main(["bench", *asked, f"out={tmp_path / 'out'}"]) == 1
    (said,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("varlab bench:")]
    assert sentence in said and not (tmp_path / "out" / "bench.jsonl").exists()


def test_a_run_is_measured_in_place_of_random_weights(lab: Path, tmp_path: Path) -> None:
    for kind, run in (("tokenize", "multi"), ("train", "raster")):
        assert main(["bench", f"what={kind}", *TINY, f"run=runs/{run}", f"out={tmp_path / kind}"]) == 0
        (line,) = lines(tmp_path / kind)
        assert line["settings"]["run"] == f"runs/{run}" and line["images"] == 2
        build = json.loads(Path(f"runs/{run}/run.json").read_text())["build"]
        assert line["settings"]["tokenizer"] == build["tokenizer"], "what was measured, not what would have been made"


@pytest.mark.parametrize("word", ["sampler=var", "transformer.width=8", "order=random"])
def test_a_word_that_a_run_would_displace_is_refused(
    word: str, lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "what=sample", *TINY, "run=runs/raster", word, f"out={tmp_path / 'out'}"]) == 1
    assert f"{word} has no effect beside run=runs/raster" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_kind_of_ones_own(tmp_path: Path) -> None:
    """The example of docs/speed.md, as it is written there."""
    page = (Path(__file__).parents[2] / "docs" / "speed.md").read_text()
    texts = re.findall(r"```(?:yaml|python)\n(.*?)```", page, re.DOTALL)
    (tmp_path / "what").mkdir()
    for file, text in zip(("what/doubling.yaml", "doubling.py"), texts, strict=True):
        (tmp_path / file).write_text(text)
    asked = ("bench", "--config-dir", str(tmp_path), "what=doubling", "rounds=1", "seconds=0.001")
    assert main([*asked, f"out={tmp_path / 'out'}"]) == 0
    (line,) = lines(tmp_path / "out")
    assert line["work"] == "doubled images" and set(line["parts"]) == {"double", "rest"}
