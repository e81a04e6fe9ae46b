"""What earlier runs found, as long as it holds: the science and the tests that were met must be the same."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from tests.mutants.mutations import ROOT, Mutant, science_files
from tests.mutants.trial import Result

Map = dict[str, tuple[float, set[tuple[str, int]]]]
"""{test: (seconds, the functions it runs)}."""


class Records:
    """The maps of the tests' files, and the mutants' results, in a folder."""

    def __init__(self, out: Path):
        self._maps, self._results, self.part = out / "maps.json", out / "results.jsonl", (out / "part.jsonl").resolve()
        kept: dict[str, dict[str, Any]] = json.loads(self._maps.read_text()) if self._maps.exists() else {}
        self.maps = {name: _read(entry["tests"]) for name, entry in kept.items() if entry["stamp"] == stamp([name])}
        lines = self._results.read_text().splitlines() if self._results.exists() else []
        self._known = {entry["mutant"]: entry for entry in map(json.loads, lines)}

    def parts(self) -> list[Path]:
        """What the plugin of each worker has written."""
        return list(self.part.parent.glob(f"{self.part.stem}.*.jsonl"))

    def keep(self, names: Sequence[str]) -> None:
        """The maps of these files are what the plugin has just written; a file of slow tests has none."""
        self.maps |= {name: {} for name in names}
        for part in self.parts():
            for test, seconds, places in map(json.loads, part.read_text().splitlines()):
                self.maps[test.split("::")[0]][test] = (seconds, {(path, line) for path, line in places})
        content = {name: {"stamp": stamp([name]), "tests": tests} for name, tests in self.maps.items()}
        self._maps.write_text(json.dumps(content, default=sorted))

    def result(self, mutant: Mutant, tests: Sequence[str], golden: Sequence[str]) -> Result | None:
        """A death holds while its killer is the same, a survival while all the tests are."""
        entry = self._known.get(mutant.key)
        if entry is None or entry["met"] != _met(tests, golden, Result(*entry["result"])):
            return None
        return Result(*entry["result"])

    def add(self, mutant: Mutant, tests: Sequence[str], golden: Sequence[str], result: Result) -> None:
        fields = [result.kind, round(result.seconds, 1), result.by]
        entry = {"mutant": mutant.key, "result": fields, "met": _met(tests, golden, result)}
        with self._results.open("a") as file:
            file.write(json.dumps(entry) + "\n")


def _met(tests: Sequence[str], golden: Sequence[str], result: Result) -> str:
    if result.kind == "killed" and result.by:
        return stamp([result.by.split("::")[0]])
    files = sorted({test.split("::")[0] for test in (*tests, *golden)})
    return stamp(files, repr([sorted(tests), sorted(golden)]))


def stamp(names: Sequence[str], more: str = "") -> str:
    """A digest of the science, what tests share, and these files of tests."""
    content = hashlib.sha256(_shared() + more.encode())
    for name in names:
        content.update(_digest(ROOT / name))
    return content.hexdigest()[:16]


@cache
def _shared() -> bytes:
    files = [ROOT / path for path in science_files()]
    helpers = (file for file in sorted((ROOT / "tests").rglob("*.py")) if not file.name.startswith("test_"))
    files += [file for file in helpers if Path(__file__).parent not in file.parents]
    return b"".join(map(_digest, files))


@cache
def _digest(file: Path) -> bytes:
    return hashlib.sha256(file.read_bytes()).digest() if file.exists() else b""


def _read(tests: dict[str, Any]) -> Map:
    return {test: (seconds, {(path, line) for path, line in places}) for test, (seconds, places) in tests.items()}
