"""Run as ``python two_ranks.py DIR WORLD``, once per rank, with the environment that tells each who it is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import varlab  # noqa: F401  before lightning, which needs its torchvision shim

from tiny_tasks import fingerprint, generator_task, held_back_task, tokenizer_task, train  # isort: skip

from tests.bounds import float64
from varlab.tasks import Task
from varlab.tasks.distributed import collectives

NAMES = ("generator", "tokenizer", "held_back")


def task(name: str) -> Task:
    """Codes are drawn from candidates in the order of ranks, so revival is left out where ranks are compared with one."""
    if name == "generator":
        return generator_task()
    return (tokenizer_task if name == "tokenizer" else held_back_task)(revival=None)


if __name__ == "__main__":
    for name in NAMES:
        directory = Path(sys.argv[1]) / name
        directory.mkdir(exist_ok=True)
        with float64():
            trained = train(task(name), directory, images=32, devices=int(sys.argv[2]))
        outcome = {"weights": fingerprint(trained.model.state_dict()), "world": collectives.world_size()}
        (directory / f"rank{collectives.rank()}.json").write_text(json.dumps(outcome))
