"""Run as ``python two_ranks.py DIR TASK WORLD``, once per rank, with the environment that tells each who it is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import varlab  # noqa: F401  before lightning, which needs its torchvision shim

from tiny_tasks import fingerprint, generator_task, held_back_task, tokenizer_task, train  # isort: skip

from varlab.tasks import Task, ranks


def task(name: str) -> Task:
    """Codes are drawn from candidates in the order of ranks, so revival is left out where ranks are compared with one."""
    if name == "generator":
        return generator_task()
    return (tokenizer_task if name == "tokenizer" else held_back_task)(revival=None)


if __name__ == "__main__":
    directory, world = Path(sys.argv[1]), int(sys.argv[3])
    directory.mkdir(exist_ok=True)
    trained = train(task(sys.argv[2]), directory, images=32, devices=world)
    outcome = {"weights": fingerprint(trained.model.state_dict()), "world": ranks.world_size()}
    (directory / f"rank{ranks.rank()}.json").write_text(json.dumps(outcome))
