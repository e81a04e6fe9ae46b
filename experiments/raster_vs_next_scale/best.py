"""Of the trainings below a folder, the optimizer's settings of the one with the lowest val NLL: ``python best.py FOLDER``."""

from __future__ import annotations

import json
import sys
from pathlib import Path


def best(folder: Path) -> list[str]:
    """The overrides of ``task.optimizer``. Raises SystemExit where no training has a val NLL."""
    ended = [(nll, run) for run in sorted(folder.iterdir()) if (nll := last_nll(run)) is not None]
    if not ended:
        raise SystemExit(f"no training in {folder} has a val NLL: train some there first")
    record = json.loads((min(ended)[1] / "run.json").read_text())
    return [word for word in record["overrides"] if word.startswith("task.optimizer.")]


def last_nll(run: Path) -> float | None:
    """The last one in a run's journal; None where there is none."""
    file = run / "metrics.jsonl"
    if not file.is_file():
        return None
    values = [line["val/nll"] for line in map(json.loads, file.read_text().splitlines()) if "val/nll" in line]
    return float(values[-1]) if values else None


if __name__ == "__main__":
    sys.stdout.write(" ".join(best(Path(sys.argv[1]))) + "\n")
