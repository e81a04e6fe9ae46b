"""How long varlab needs for many runs, many jobs and a long journal, and what it takes in memory and bytes."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

RUNS = (500, 1000, 2000, 5000)
JOBS = (50, 500, 5000, 50_000)
MEGABYTES = (2, 20, 200)
_PADDING = {f"part{i}": {f"key{k}": i * k for k in range(12)} for i in range(12)}  # as large as a real configuration


def make_run(folder: Path, number: int) -> Path:
    """A finished generator: a configuration of its own, 60 log points, one score."""
    seed = number % 5
    path = folder / f"lr={number}e-6+seed={seed}"
    (path / "scores").mkdir(parents=True, exist_ok=True)
    config = {"seed": seed, "lr": number * 1e-6, "order": {"_target_": "varlab.order.Raster"}, **_PADDING}
    record = {
        "command": "train", "name": "many", "overrides": [f"lr={number}e-6", f"seed={seed}"],
        "choices": {"order": "raster"}, "config": config, "seed": seed, "build": {"transformer": {}, "order": {}},
        "outcome": {"state": "finished", "error": None, "images": 60_000, "flops": 1.5e12, "seconds": 99.5},
    }  # fmt: skip
    score = {
        "protocol": {"n": 1000, "extractor": "classifier"},
        "scores": {"fid": 10 + number / 1000},
        "images": 60_000,
    }
    (path / "run.json").write_text(json.dumps(record))
    (path / "metrics.jsonl").write_text("".join(json.dumps(log_point(i)) + "\n" for i in range(1, 61)))
    (path / "scores" / "classifier_n1000.json").write_text(json.dumps(score))
    return path


def log_point(i: int) -> dict[str, float]:
    point = {
        "images": 1000 * i,
        "flops": 25_000_000_000 * i,
        "seconds": 1.6 * i,
        "train/loss": 5 / i,
        "train/grad_norm": 0.4,
    }
    return point | ({"val/loss": 6 / i, "val/nll": 300 / i} if i % 10 == 0 else {})


def measured(work: Callable[[], Result]) -> tuple[float, Result]:
    """The CPU seconds of a piece of work, and what it returns."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def report(folder: Path) -> str:
    from varlab.report import write_report

    seconds, files = measured(lambda: write_report([folder], folder.parent / "page", title="Many runs"))
    return f"{seconds:.1f} | {files.html.stat().st_size / 1e6:.2f} | {peak():,.0f}"


def refresh(folder: Path, jobs: int) -> str:
    from varlab.launch.sweep import refresh_row
    from varlab.report.sweep_table import SweepJob, add_jobs

    run = make_run(folder, 0)
    add_jobs(folder, [SweepJob((f"lr={i}e-6",), run.name if i == jobs // 2 else f"job{i}") for i in range(jobs)])
    times = sorted(measured(lambda: refresh_row(run))[0] for _ in range(9))
    return f"{1000 * times[4]:.1f}"


def metrics(folder: Path, megabytes: int) -> str:
    from varlab.report.log_points import read_log_points

    line = '{"images": %d, "flops": %d, "seconds": %.3f, "train/loss": %.9f, "train/lr": 0.0001}\n'
    file = folder / "metrics.jsonl"
    folder.mkdir(parents=True)
    with file.open("w") as out:
        for i in range(megabytes * 10_000):
            out.write(line % (i, i * 123_456_789, i / 7, 1 / (i + 1)))
    seconds, (points, _) = measured(lambda: read_log_points(file))
    size = file.stat().st_size / 1e6
    file.unlink()
    return f"{size:.0f} | {seconds:.2f} | {len(points):,} | {peak():,.0f}"


def peak() -> float:
    """The most memory that this process had, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def alone(*arguments: object) -> str:
    """One measurement in a process of its own, whose memory is its own."""
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def main(out: Path) -> None:
    print("| runs | report, CPU s | page, MB | memory, MB |\n|---|---|---|---|")
    for number, runs in enumerate(RUNS):
        for i in range(RUNS[number - 1] if number else 0, runs):
            make_run(out / "runs", i)
        print(f"| {runs:,} | {alone('report', out / 'runs')} |", flush=True)
    print("\n| jobs | refresh of sweep.csv after a job, CPU ms |\n|---|---|")
    for jobs in JOBS:
        print(f"| {jobs:,} | {alone('refresh', out / f'sweep{jobs}', jobs)} |", flush=True)
    print("\n| metrics.jsonl, MB | read, CPU s | log points kept | memory, MB |\n|---|---|---|---|")
    for megabytes in MEGABYTES:
        print(f"| {alone('metrics', out / f'metrics{megabytes}', megabytes)} |", flush=True)


if __name__ == "__main__":
    what, folder, *numbers = sys.argv[1:]
    if what == "all":
        main(Path(folder))
    else:
        measurements: dict[str, Callable[..., str]] = {"report": report, "refresh": refresh, "metrics": metrics}
        print(measurements[what](Path(folder), *map(int, numbers)))
