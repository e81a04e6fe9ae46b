"""The scaling study's commands, as its run.sh gives them, at two steps a run and the shrunk sizes that experiments declare."""

from __future__ import annotations

import csv
import os
import subprocess
from pathlib import Path

from hydra import compose, initialize_config_dir

from varlab.cli.app import conf_dir
from varlab.cli.main import main

SCRIPT = Path(__file__).resolve().parents[2] / "experiments" / "scaling" / "run.sh"
RECORD = '#!/bin/sh\nprintf \'%s\\t\' "$@" >> "$RECORD"\necho >> "$RECORD"\n'


def commands(script: Path, out: Path, tmp_path: Path) -> list[list[str]]:
    """Every ``varlab`` command of a script, in turn, with nothing run."""
    stub, record = tmp_path / "bin" / "varlab", tmp_path / "commands"
    stub.parent.mkdir()
    stub.write_text(RECORD)
    stub.chmod(0o755)
    path = f"{stub.parent}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(
        ["bash", script], check=True, env={**os.environ, "PATH": path, "OUT": str(out), "RECORD": str(record)}
    )
    return [line.rstrip("\t").split("\t") for line in record.read_text().splitlines()]


def shrunk(command: list[str]) -> list[str]:
    """The same command at the size its experiment declares for tests; a sweep keeps its transformers."""
    if command[0] != "train":
        return command
    experiment = next(item for item in command if item.startswith("experiment="))
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        shrink = [item for item in compose("train", [experiment]).shrink if not item.startswith("transformer=")]
    if "-m" not in command:
        return [*command, *shrink, "budget.images=16", "data.batch=8", "tensorboard=false"]
    smaller = {"budget.images": "16", "seed": "0", "launch": "local"}
    kept = [item for item in command if item.partition("=")[0] not in smaller]
    return [*kept, *(f"{key}={value}" for key, value in smaller.items()), *shrink, "log.every=8", "val.every=8",
            "pictures.count=2", "tensorboard=false"]  # fmt: skip


def test_the_study_runs_as_written(lab: Path, tmp_path: Path) -> None:
    out = tmp_path / "scaling"
    asked = commands(SCRIPT, out, tmp_path)
    assert [command[0] for command in asked] == ["pack", "train", "train", "train", "report"]
    for command in map(shrunk, asked):
        assert main(command) == 0, command
    rows = list(csv.DictReader((out / "scaling.csv").open()))
    assert {(row["measure"], row["against"]) for row in rows} >= {("loss", "N"), ("loss/last", "N"), ("error", "N")}
    assert all(row["points"] == "6" for row in rows if row["against"] == "N")
    assert len(list((out / "generator").glob("*/run.json"))) == 6
