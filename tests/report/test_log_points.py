"""The journal in a stream: all of a short one, an even choice of a long one, its validations and its end."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path

from varlab.report.log_points import read_log_points


def test_a_long_journal_is_thinned_evenly_and_keeps_validations_and_its_end(tmp_path: Path) -> None:
    file, n = tmp_path / "metrics.jsonl", 100_000
    lines = [{"images": i, "train/loss": i} | ({"val/loss": i} if i % 1000 == 0 else {}) for i in range(1, n + 1)]
    lines.append({"images": n + 1, "train/loss": 7, "train/last": 8})
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tracemalloc.start()
    points, fault = read_log_points(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not fault and 4096 <= len(points) <= 8192 + 200 and peak < 12e6
    seen = [point["images"] for point in points]
    assert seen == sorted(seen) and max(b - a for a, b in zip(seen, seen[1:], strict=False)) <= 2 * n / 4096
    assert [p["images"] for p in points if "val/loss" in p] == list(range(1000, n + 1, 1000))
    assert points[-1] == lines[-1]


def test_a_short_journal_is_whole_but_for_its_half_written_end(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"images": 1}\n\n{"images": 2}\n{"imag')
    assert read_log_points(file) == ([{"images": 1}, {"images": 2}], "")
    assert read_log_points(tmp_path / "none") == ([], "")


def test_lines_that_only_together_are_json_are_no_log_points(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"images": 1\n"x": 2}\n[1]\n{"images": 3}\n')
    points, fault = read_log_points(file)
    assert points == [{"images": 3}] and "3 lines" in fault


def test_a_line_without_end_is_not_kept(tmp_path: Path) -> None:
    file = tmp_path / "metrics.jsonl"
    file.write_text('{"x": "' + "a" * 30_000_000 + '"}\n{"images": 1}\n')
    tracemalloc.start()
    points, _ = read_log_points(file)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert points == [{"images": 1}] and peak < 4e6
