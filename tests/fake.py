"""A command for tests, behind the same door as the real ones: it does what its configuration says."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from omegaconf import DictConfig, OmegaConf

from varlab.cli.command_table import Command
from varlab.errors import VarlabError
from varlab.run.directory import RunDirectory

COMMAND = Command(
    "fake", "a command for tests", "varlab fake", positional="run", module="tests.fake", check="tests.fake.check"
)
COMMANDS = {"fake": COMMAND}

CONFIG = """
defaults:
  - flavour: plain
  - launch: local
  - _self_
  - experiment: null
name: fakes
out: null
seed: 0
action: work
needed: 1
run: null
trainer: {devices: 1, num_nodes: 1, accelerator: cpu}
"""


def write_conf(folder: Any) -> None:
    """A --config-dir with the command's configuration."""
    (folder / "flavour").mkdir(parents=True)
    (folder / "experiment").mkdir()
    (folder / "experiment" / "first.yaml").write_text("# @package _global_\nseed: 5\n")
    (folder / "fake.yaml").write_text(CONFIG)
    (folder / "flavour" / "plain.yaml").write_text("taste: none\n")
    (folder / "flavour" / "salty.yaml").write_text("taste: salt\n")


def check(config: dict[str, Any], directory: RunDirectory) -> None:
    """Refuses ``action=never``, and a job of the kind second as long as no job of the kind first is done beside it."""
    if config["action"] == "never":
        raise VarlabError("this never begins: do something else")
    if config.get("kind") == "second" and not any(directory.path.parent.glob("*kind=first*/run.json")):
        raise VarlabError("there is no first: make one")


def run(config: dict[str, Any], directory: RunDirectory) -> dict[str, Any]:
    cfg = OmegaConf.create(config)
    directory.update(auto={"runs": directory.record().auto.get("runs", 0) + 1})
    return dict(ACTIONS[cfg.action](cfg, directory))


def work(cfg: DictConfig, directory: RunDirectory) -> dict[str, Any]:
    return {"images": 10, "seed": cfg.seed, "run": cfg.run}


def slow(cfg: DictConfig, directory: RunDirectory) -> dict[str, Any]:
    time.sleep(1.5)
    return work(cfg, directory)


def refuse(cfg: DictConfig, directory: RunDirectory) -> dict[str, Any]:
    raise VarlabError("this cannot be done: do something else")


def slow_refuse(cfg: DictConfig, directory: RunDirectory) -> dict[str, Any]:
    time.sleep(1.5)
    return refuse(cfg, directory)


def break_down(cfg: DictConfig, directory: RunDirectory) -> dict[str, Any]:
    raise ZeroDivisionError("a bug")


def progress_then_refuse(cfg: DictConfig, directory: RunDirectory) -> dict[str, Any]:
    (directory.path / "progress").write_text("7")
    return refuse(cfg, directory)


def interrupted(cfg: DictConfig, directory: RunDirectory) -> dict[str, Any]:
    raise KeyboardInterrupt


def all_reduce(cfg: DictConfig, directory: RunDirectory) -> dict[str, Any]:
    """Every rank adds its rank + 1."""
    import torch
    from torch import distributed

    distributed.init_process_group("gloo")
    total = torch.tensor(float(distributed.get_rank() + 1))
    distributed.all_reduce(total)
    return {"total": total.item(), "world": distributed.get_world_size()}


def rank_1_refuses(cfg: DictConfig, directory: RunDirectory) -> dict[str, Any]:
    if directory.rank == 1:
        raise VarlabError("rank one has had enough")
    time.sleep(60)
    return {}


def rank_1_dies(cfg: DictConfig, directory: RunDirectory) -> dict[str, Any]:
    if directory.rank == 1:
        print("last words", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
    return {}


def wait(cfg: DictConfig, directory: RunDirectory) -> dict[str, Any]:
    (directory.path / f"pid{directory.rank}").write_text(str(os.getpid()))
    time.sleep(60)
    return {}


ACTIONS = {
    action.__name__: action
    for action in (
        work,
        slow,
        refuse,
        slow_refuse,
        break_down,
        progress_then_refuse,
        interrupted,
        all_reduce,
        rank_1_refuses,
        rank_1_dies,
        wait,
    )
}
