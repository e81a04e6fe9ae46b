"""What encode, sample and evaluate share: the model of a run, its shards, the sampler with the asked changes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from varlab.config import Config
from varlab.data import ShardDataModule
from varlab.model import Model
from varlab.recipe.assembly import make
from varlab.recipe.loading import load
from varlab.run.directory import read_run
from varlab.sample import Sampler
from varlab.types import VarlabError

SAMPLER_KEYS = ("cfg", "ramp", "cfg_steps", "temperature", "top_k", "top_p", "smooth")


def device_of(setting: str) -> torch.device:
    """auto: a GPU where there is one."""
    if setting == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=setting).device
    except (RuntimeError, AssertionError) as error:
        raise VarlabError(f"device={setting} cannot be used here ({str(error).splitlines()[0]}).") from error


def trained(config: Config) -> tuple[Model, Config]:
    """The model of ``config["run"]`` on its device, and the run's record."""
    for name in ("n", "batch", "shown", "grown", "seed"):
        least = 0 if name == "seed" else 1
        if name in config and (not isinstance(config[name], int) or config[name] < least):
            raise VarlabError(f"{name}={config[name]} must be a whole number, at least {least}.")
    if config["threads"] is not None:
        torch.set_num_threads(config["threads"])
    run = Path(config["run"])
    record = read_run(run)
    if record["outcome"]["state"] != "finished":
        raise VarlabError(
            f"{run} is {record['outcome']['state']}, not finished: run the same varlab train command again."
        )
    return load(run, weights=config["weights"], device=device_of(config["device"])), record


def shards(config: Config, record: Config) -> ShardDataModule:
    """The shards that ``data`` names, or those that the run was trained on. VarlabError where they are not the same size."""
    own = config.get("data") or record["config"].get("data")
    if own is None:
        raise VarlabError(f"{config['run']} was trained on no shards that it knows of: give data=folder data.path=DIR.")
    data: ShardDataModule = make(own)
    wanted, has = tuple(record["build"]["image_size"]), data.info.image_size
    if wanted != has:
        raise VarlabError(f"The run works on {wanted[0]}×{wanted[1]} images, {data.info.path} holds {has[0]}×{has[1]}.")
    return data


def sampler_of(config: Config, model: Model) -> Sampler:
    """The run's own sampler, or the one of the group ``sampler``; with the settings given by name."""
    if model.sampler is None:
        raise VarlabError(f"{config['run']} is not the run of a generator: there is nothing to sample from.")
    base: Sampler = model.sampler if config.get("sampler") is None else make(config["sampler"])
    return replace(base, **{key: config[key] for key in SAMPLER_KEYS if config[key] is not None})
