"""Run as ``python stock_ranks.py DIR``, once per rank: each task by ``fit``, and under a plain Trainer with DDP."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import varlab  # noqa: F401  before lightning, which needs its torchvision shim

from tiny_tasks import BATCH, Data, classifier_task, fingerprint, generator_task, held_back_task, train  # isort: skip

from lightning.pytorch import Trainer

from varlab.tasks import Task, TrainerData
from varlab.tasks.distributed import collectives

TASKS: dict[str, Any] = {"classifier": classifier_task, "generator": generator_task, "tokenizer": held_back_task}
UPDATES = 8


def bits(task: Task) -> list[str]:
    modules = [task.model, *task.helpers().values()]
    return [fingerprint(state) for state in (*(m.state_dict() for m in modules), task.ema.weights(task.model))]


def stock(task: Task, folder: Path, strategy: str) -> Task:
    look = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategy,
        max_steps=UPDATES,
        logger=False,
        default_root_dir=folder,
        **look,
    )
    trainer.fit(task, datamodule=TrainerData(Data()))
    return task


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    for name, make in TASKS.items():
        found = {"ours": bits(train(make(), folder / name, images=UPDATES * BATCH, devices=2, val_every=None))}
        for strategy in ("ddp", "ddp_find_unused_parameters_true"):
            found[strategy] = bits(stock(make(), folder, strategy))
        (folder / f"{name}{collectives.rank()}.json").write_text(json.dumps(found))
