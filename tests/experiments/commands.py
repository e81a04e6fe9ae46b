"""The commands of a study's script, one by one, in this process: bash runs the script, and its ``varlab`` asks us."""

from __future__ import annotations

import functools
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from varlab.cli.app import conf_dir
from varlab.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
ASK = """#!{python} -SE
import json, socket, sys
asked = socket.socket(socket.AF_UNIX)
asked.connect({door!r})
asked.sendall(json.dumps(sys.argv[1:]).encode() + b"\\n")
sys.exit(int(asked.makefile().readline()))
"""


def run(script: Path, answer: Callable[[list[str]], int], tmp_path: Path, **environment: str) -> list[list[str]]:
    """Run a script to its end; ``answer`` takes the arguments of each ``varlab``, and returns its exit code.

    Returns all of them. Raises AssertionError where the script fails.
    """
    door, stub, log = tmp_path / "door", tmp_path / "bin" / "varlab", tmp_path / "script.log"
    stub.parent.mkdir(parents=True)
    stub.write_text(ASK.format(python=sys.executable, door=str(door)))
    stub.chmod(0o755)
    path = f"{stub.parent}{os.pathsep}{os.environ['PATH']}"
    asked: list[list[str]] = []
    with socket.socket(socket.AF_UNIX) as listening, log.open("wb") as out:
        listening.bind(str(door))
        listening.listen()
        listening.settimeout(0.1)
        command = subprocess.Popen(
            ["bash", script], env={**os.environ, "PATH": path, **environment}, stdout=out, stderr=out
        )
        while command.poll() is None:
            try:
                connection, _ = listening.accept()
            except TimeoutError:
                continue
            connection.settimeout(None)
            with connection, connection.makefile("rw") as talk:
                asked.append(json.loads(talk.readline()))
                talk.write(f"{answer(asked[-1])}\n")
    assert command.returncode == 0, log.read_text()
    return asked


def answer(command: list[str], conf: Path) -> int:
    """Do it at two steps a run and the size that its experiment declares for tests; what the command itself asks for stays,
    all but budget and launcher, and of a grid of samplers the corners, so that runs are where the next command looks for them.
    conf: a folder for settings."""
    words = ["launch=local" if word.startswith("launch=") else word for word in command]
    given = dict(word.partition("=")[::2] for word in words if "=" in word)
    if command[0] == "pack" and given["source"] == "photos":
        words += ["source.train_crops=16", "source.val_crops=8"]
    if command[0] == "evaluate":
        words = [f"{key}={_ends(given[key])}" if (key := word.partition("=")[0]) in GRID else word for word in words]
    if command[0] == "train":
        # a branch is longer than what it branches from
        images = "24" if "from" in given else "16"
        short = {"budget.flops": "1", "budget.images": images, "budget.seconds": "0.1"}
        named = [key for key in short if given.get(key, "null") != "null"]
        words = [f"{key}={short[key]}" if (key := word.partition("=")[0]) in named else word for word in words]
        experiment = given["experiment"]
        smaller = [*_declared(experiment), *SHORT, *(() if named else ("budget.flops=null", "budget.images=16"))]
        words = [
            f"experiment={_overlay(experiment, smaller, conf)}" if w.startswith("experiment=") else w for w in words
        ]
        words += ["--config-dir", str(conf)]
    return main(words)


GRID = ("cfg", "top_k", "top_p")


def _ends(values: str) -> str:
    """Of a list with commas the first and the last."""
    first, *rest = values.split(",")
    return ",".join([first, *rest[-1:]])


SHORT = ("data.batch=8", "tensorboard=false", "log.every=8", "val.every=16", "pictures.count=2", "scores.every=null")


@functools.cache
def _declared(experiment: str) -> list[str]:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return list(compose("train", [f"experiment={experiment}"]).shrink)


def _overlay(experiment: str, words: list[str], conf: Path) -> str:
    """That experiment with further settings: as words of the command they would be in every run's name."""
    settings = [word.split("=", 1) for word in words]
    is_group = {key: (conf_dir() / key.partition("@")[0]).is_dir() for key, _ in settings}
    whole = OmegaConf.to_container(OmegaConf.load(conf_dir() / "experiment" / f"{experiment}.yaml"))
    options = [{f"override /{key}": value} for key, value in settings if is_group[key]]
    before = [entry for entry in whole.pop("defaults") if entry != "_self_"]
    defaults = {"defaults": [*before, *options, "_self_"]}
    values = OmegaConf.from_dotlist([f"{key}={value}" for key, value in settings if not is_group[key]])
    name = f"small/{experiment.replace('/', '_')}"
    file = conf / "experiment" / f"{name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("# @package _global_\n" + OmegaConf.to_yaml(OmegaConf.merge(defaults, whole, values)))
    return name


def jobs(command: list[str]) -> list[list[str]]:
    """The overrides of each job of a sweep, from those of all."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    overrides = OverridesParser.create().parse_overrides([_quoted(word) for word in command])
    return [list(map(str, job)) for batch in BasicSweeper.split_arguments(overrides, None) for job in batch]


def _quoted(word: str) -> str:
    """As varlab's own command line does with paths."""
    key, _, value = word.partition("=")
    return f"{key}={','.join(map(_one, value.split(',')))}" if key.endswith(("run", "out")) else word


def _one(value: str) -> str:
    return value if value.startswith("'") else f"'{value}'"
