"""``varlab train``: a classifier, a tokenizer or a generator."""

from __future__ import annotations

import logging
import math
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from varlab.config import Config
from varlab.data import BaseDataModule
from varlab.files import digest
from varlab.recipe.assembly import make
from varlab.recipe.budget import images_per_second
from varlab.recipe.trainings import KINDS, Plan
from varlab.rng import Rng
from varlab.run.directory import RunDirectory
from varlab.run.record import Use, counted
from varlab.tasks import Task, fit
from varlab.tasks.callbacks import (
    Checkpointer,
    InTrainingScores,
    Journal,
    Pictures,
    ProgressBar,
    Resume,
    TrainingLog,
    Validation,
)
from varlab.types import VarlabError

__all__ = ["run"]

logger = logging.getLogger(__name__)


def run(cfg: DictConfig, directory: RunDirectory) -> Config:
    """Train what the configuration describes, to the end of its budget; a stopped run goes on where it stood."""
    config: Config = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    auto = directory.read()["auto"] or {
        "precision": precision(config["trainer"]["precision"], config["trainer"]["accelerator"])
    }
    data: BaseDataModule = make(config["data"])
    _check_same_data(data, directory)
    plan = KINDS[config["kind"]](config, data, Rng(config["seed"]), directory)
    budget = _in_images(config, auto, data, directory)
    images = budget_images(plan.task, data.batch, images=budget["images"], flops=budget["flops"])
    directory.update(
        data=_data_record(data),
        auto=auto,
        build=plan.build,
        parents=plan.parents,
        cost=plan.cost,
        budget={"images": images, "flops": plan.task.flops_at(images)},
    )
    logger.info("%s: %d images, %.3g FLOPs", config["kind"], images, plan.task.flops_at(images))
    _fit(config, auto, data, plan, images, directory)
    task = plan.task
    logger.info("%s: %d images in %.0f s", directory.path, task.images, task.stopwatch.seconds)
    return {
        "images": task.images,
        "flops": task.flops_at(task.images),
        "tokenizer_flops": plan.tokenizer_flops(task.images),
        "seconds": round(task.stopwatch.seconds, 3),
    }


def _in_images(config: Config, auto: Config, data: BaseDataModule, directory: RunDirectory) -> Config:
    """The budget, one of time turned into images: by a trial when the run begins, by its record ever after."""
    budget = {"images": None, "flops": None, "seconds": None} | config["budget"]
    seconds = budget["seconds"]
    if seconds is None:
        return budget
    if budget["images"] is not None or budget["flops"] is not None:
        raise VarlabError(
            "Give the length of the training once: one of budget.images, budget.flops and budget.seconds."
        )
    if not isinstance(seconds, int | float) or not 0 < seconds < math.inf:
        raise VarlabError(f"budget.seconds is {seconds}, but it must be a number above 0.")
    known = directory.read()["budget"].get("images")
    if known is None:
        pace = images_per_second(config, auto, data, directory)
        known = max(1, round(seconds * pace))
        logger.info("%.0f images a second: %g seconds are %d images", pace, seconds, known)
    return {"images": known, "flops": None}


def precision(asked: str, accelerator: str) -> str:
    """bf16-mixed where the processor multiplies bf16 in hardware, else 32-true; anything but "auto" as it was asked."""
    if asked != "auto":
        return asked
    import torch

    if accelerator != "cpu" and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported() else "32-true"
    info = Path("/proc/cpuinfo")
    flags = info.read_text() if info.exists() else ""
    return "bf16-mixed" if "avx512_bf16" in flags or "amx_bf16" in flags else "32-true"


def budget_images(task: Task, batch: int, *, images: int | None, flops: float | None) -> int:
    """The length of a training in whole batches: as many images as asked, or the fewest that spend so many FLOPs."""
    if (images is None) == (flops is None):
        raise VarlabError(
            "Give the length of the training: one of budget.images=N, budget.flops=F and budget.seconds=S."
        )
    for name, value in (("images", images), ("flops", flops)):
        if value is not None and (not isinstance(value, int | float) or not 0 < value < math.inf):
            raise VarlabError(f"budget.{name} is {value}, but it must be a number above 0.")
    if images is not None:
        return math.ceil(images / batch) * batch
    assert flops is not None
    low, high = 0, 1
    while task.flops_at(high * batch) < flops:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if task.flops_at(middle * batch) >= flops else (middle, high)
    return high * batch


def _fit(config: Config, auto: Config, data: BaseDataModule, plan: Plan, images: int, directory: RunDirectory) -> None:
    path = directory.path
    config_hash = _config_hash(directory.record().config, auto)  # of the names that _target_s had when the run began
    journal = Journal(directory=path, tensorboard=config["tensorboard"])
    resume = Resume(
        checkpoint=path / "last.ckpt",
        progress=path / "progress",
        config_hash=config_hash,
        journal=journal,
        on_resume=lambda resumed: directory.update(resumes=[*directory.read()["resumes"], resumed]),
    )
    callbacks: list[Any] = [
        TrainingLog(journal=journal, every=config["log"]["every"], bad=lambda: data.watches.get("train")),
        Validation(
            journal=journal,
            loader=lambda rank, world: data.eval_loader("val", rank, world),
            every=config["val"]["every"],
        ),
        ProgressBar(console=Console(stderr=True), line_seconds=config["log"]["line_seconds"]),
    ]
    if plan.scores is not None:
        callbacks.append(InTrainingScores(journal=journal, scores=plan.scores, every=config["scores"]["every"]))
    if plan.draw is not None:
        callbacks.append(Pictures(journal=journal, draw=plan.draw, every=config["pictures"]["every"]))
    trainer = {key: value for key, value in config["trainer"].items() if key != "micro_batch"}
    fit(
        plan.task,
        data,
        images=images,
        resume=resume,
        callbacks=callbacks,
        checkpointer=Checkpointer(
            path=path / "last.ckpt", every=config["checkpoint"]["every"], config_hash=config_hash, weights=path
        ),
        **(trainer | auto),
    )


def _config_hash(config: Config, auto: Config) -> str:
    """The hash of everything that the weights depend on."""
    return digest([counted(config, Use.IDENTITY), auto])


def _check_same_data(data: BaseDataModule, directory: RunDirectory) -> None:
    """Raises VarlabError where a run is to be resumed on other images than it began with."""
    before = directory.read()["data"]
    if before is not None and (before["hash"], before.get("tokens")) != (data.info.hash, data.info.tokens):
        raise VarlabError(
            f"{data.info.path} holds other images than when {directory.path} began: take another out= to begin anew."
        )


def _data_record(data: BaseDataModule) -> Config:
    info = data.info
    return {
        "path": str(info.path),
        "hash": info.hash,
        "tokens": info.tokens,
        "source": info.source,
        "num_classes": info.num_classes,
        "classes": list(info.classes),
        "image_size": list(info.image_size),
        "counts": dict(info.counts),
    }
