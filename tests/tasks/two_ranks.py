"""Run as ``python two_ranks.py DIR TASK WORLD``, once per rank, with the environment that tells each who it is."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import varlab  # noqa: F401  before lightning, which needs its torchvision shim

from tiny_tasks import fingerprint, generator_task, tokenizer_task, train  # isort: skip

from varlab.tasks import ranks

if __name__ == "__main__":
    directory, name, world = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    make = {"tokenizer": tokenizer_task, "generator": generator_task}[name]
    # codes are drawn from candidates in the order of ranks, so revival is left out where ranks are compared with one
    changes = {"revival": None} if name == "tokenizer" else {}
    task = train(make(**changes), directory, images=32, devices=world)
    outcome = {"weights": fingerprint(task.model.state_dict()), "world": ranks.world_size()}
    (directory / f"rank{ranks.rank()}.json").write_text(json.dumps(outcome))
