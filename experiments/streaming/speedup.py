"""Compare the images per second of trainings from images and from tokens: medians over log points."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path


def rate(run: Path) -> float:
    """Median over a run's log points without the first, which includes the start-up."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return statistics.median(
        [line["train/images_per_second"] for line in lines if "train/images_per_second" in line][1:]
    )


def main(out: Path) -> None:
    """Print a line for each round, and the median of the ratios."""
    ratios = []
    for online in sorted(out.glob("online*")):
        tokens = out / online.name.replace("online", "tokens")
        ratios.append(rate(tokens) / rate(online))
        sys.stdout.write(
            f"{online.name}: {rate(online):.1f} images/s, {tokens.name}: {rate(tokens):.1f}, {ratios[-1]:.2f} times\n"
        )
    sys.stdout.write(f"median: {statistics.median(ratios):.2f} times\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
