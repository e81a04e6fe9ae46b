"""``varlab train``: a classifier, a tokenizer or a generator."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path

import torch
from lightning.pytorch import Callback
from rich.console import Console

from varlab.cli.conclusion import say_next
from varlab.cli.progress_bar import progress_bar
from varlab.config import Config, shell_word
from varlab.data import BaseDataModule
from varlab.data.limits import require_equal_shares
from varlab.files import digest
from varlab.launch.environment import local_rank, started_ranks
from varlab.launch.terminal import show_table
from varlab.recipe.budget import budget_images
from varlab.recipe.course.branch import trunk_cost
from varlab.recipe.objects import make
from varlab.recipe.plan import Plan, make_plan, precision
from varlab.recipe.preflight.best_score import best_score
from varlab.recipe.preflight.data_facts import note_leakage, require_val
from varlab.recipe.preflight.requested_ranks import world_size
from varlab.recipe.trainer.forecast import forecast
from varlab.recipe.trainer.parts import make_callbacks, make_loggers, make_profiler
from varlab.recipe.trainer.settings import check_keys, dev_batches
from varlab.run.changes import compare_runs
from varlab.run.config_keys import Use, counted
from varlab.run.directory import RunDirectory
from varlab.run.dry_directory import DryDirectory
from varlab.run.record import RunRecord
from varlab.tasks import Task
from varlab.tasks.callbacks import TimeBudget
from varlab.tasks.loggers import Journal
from varlab.types import DataInfo, VarlabError

__all__ = ["run"]

logger = logging.getLogger(__name__)


def run(config: Config, directory: RunDirectory) -> Config:
    """Train to the end of the budget. A stopped run continues from its last checkpoint.

    The planner that ``conf/task`` names makes the task. ``dry``: only say what the training needs.
    """
    if config.get("dry"):
        _note_earlier(directory)
        directory = DryDirectory(directory.path, RunRecord(config=config))
    record = directory.record()
    auto = record.auto or {"precision": precision(config["trainer"]["precision"], config["trainer"]["accelerator"])}
    trainer = config["trainer"] | auto
    check_keys(trainer)
    loggers, profiler = make_loggers(config), make_profiler(config)
    data: BaseDataModule = make(config["data"])
    _check_same_data(info := data.info, record, directory)
    require_val(config, info)
    require_equal_shares(data.batch, world_size(trainer))
    leakage = note_leakage(str(data.path), data.duplicates.leakage) if directory.rank == 0 else ""

    training = make_plan(config | {"trainer": trainer}, data, directory)
    task = training.task
    if trainer.get("shard"):
        task.shards()  # refuses a task that cannot be sharded
    data = data if config.get("dry") else _tokens_of(training, data, trainer)
    images = budget_images(
        config["budget"],
        task,
        data.batch,
        known=record.budget.get("images"),
        updates=dev_batches(trainer),
    )
    if config.get("dry"):
        show_table(
            str(directory.path),
            ("", ""),
            forecast(training, data, trainer, images=images, seconds=config["budget"]["seconds"]).rows(),
        )
        return {}
    checkpoint_hash = _note_plan(training, directory, _data_record(info, leakage), auto)
    note_length = partial(_note_length, config["kind"], task, directory)
    if images is not None:
        note_length(images)
    journal = Journal(directory=directory.path)
    training.fit(
        data,
        directory.path,
        images=images,
        trainer=trainer,
        time_budget=None if images else partial(TimeBudget, seconds=config["budget"]["seconds"], decided=note_length),
        callbacks=_callbacks(config, data, training, directory),
        loggers=[journal, *loggers],
        profiler=profiler,
        checkpoint_every=config["checkpoint"]["every"],
        checkpoint_minutes=config["checkpoint"].get("minutes"),
        checkpoint_keep=config["checkpoint"].get("keep") or (),
        best=best_score(config),
        config_hash=checkpoint_hash,
        on_resume=lambda resumed: _note_resume(directory, config, resumed),
    )
    return _outcome(training, directory, journal if directory.rank == 0 else None)


def _note_earlier(directory: RunDirectory) -> None:
    """Say that a forecast is not of what is left of the run that the directory holds."""
    if directory.record_path.exists():
        state = directory.record().outcome.state
        logger.info("%s holds a run (%s): the table is of its whole training", directory.path, state)


def _note_plan(training: Plan, directory: RunDirectory, data: Config, auto: Config) -> str:
    """Record what is trained from what, before it begins; returns the hash for checkpoints."""
    record = directory.record()
    checkpoint_hash = _checkpoint_hash(record, auto)
    directory.update(
        data=data,
        auto=auto,
        build=training.build,
        parents={**training.parents, **trunk_cost(record, training.task.flops_at)},
        cost=training.cost,
        checkpoint_hash=checkpoint_hash,
    )
    return checkpoint_hash


def _note_length(kind: str, task: Task, directory: RunDirectory, images: int) -> None:
    """Record the length of the training, once it is known."""
    directory.update(budget={"images": images, "flops": task.flops_at(images)})
    logger.info("%s: %d images, %.3g FLOPs", kind, images, task.flops_at(images))


def _outcome(training: Plan, directory: RunDirectory, journal: Journal | None) -> Config:
    """What the training cost, and on rank 0 (``journal``) what it concludes."""
    task = training.task
    logger.info("%s: %d images in %.0f s", directory.path, task.images, task.stopwatch.seconds)
    concluded = {} if journal is None else training.conclude(journal.last_values())
    if journal is not None:
        _say_next(training, journal.save_dir)
    return {
        "images": task.images,
        "flops": task.flops_at(task.images),
        "tokenizer_flops": training.tokenizer_flops(task.images),
        "seconds": round(task.stopwatch.seconds, 3),
        **concluded,
    }


def _say_next(training: Plan, run: str) -> None:
    """Log where the pictures are, and which command comes next."""
    word = shell_word(run)
    following = {
        "tokenizer": [
            f"varlab train task=generator tokenizer_run={word} with the same data",
            f"varlab evaluate {word}",
        ],
        "generator": [f"varlab sample {word}", f"varlab evaluate {word}"],
    }
    holds = RunRecord(build=training.build).holds
    say_next(None if training.draw is None else Path(run) / "pictures", *following.get(holds, ()))


def _tokens_of(training: Plan, data: BaseDataModule, trainer: Config) -> BaseDataModule:
    """The data to train from: the tokens of the images where the plan encodes these once, which happens here."""
    if training.cache is None:
        return data
    on_gpu = trainer["accelerator"] != "cpu" and torch.cuda.is_available()
    with progress_bar("encoding") as progress:
        return training.cache.fill(
            world=started_ranks() or 1,
            device=f"cuda:{local_rank() or 0}" if on_gpu else "cpu",
            threads=trainer.get("threads"),
            progress=progress,
        )


def _checkpoint_hash(record: RunRecord, auto: Config) -> str:
    """The hash that the run began with. Earlier versions did not record it: they resumed with the same configuration only."""
    return record.checkpoint_hash or digest([counted(record.config, Use.CHECKPOINT), auto])


def _note_resume(directory: RunDirectory, config: Config, resumed: Config) -> None:
    """Record from where the run resumes, and what has changed: its data and its parents are the same ones."""
    record = directory.record()
    if note := compare_runs(record.config, config).to_json():
        directory.update(config=counted(config, Use.CHECKPOINT))
    directory.update(resumes=[*record.resumes, resumed | note])


def _callbacks(config: Config, data: BaseDataModule, training: Plan, directory: RunDirectory) -> list[Callback]:
    """What happens on the clock of images, beside checkpoints; a user's callbacks may name the same live objects."""
    return make_callbacks(
        config,
        without={
            "validation": bool(config["val"].get("skip")),
            "scores": training.scores is None,
            "pictures": training.draw is None,
        },
        data=data,
        directory=directory.path,
        bad=lambda: data.watches.get("train"),
        loader=lambda rank, world: data.eval_loader("val", rank, world),
        limit=config["trainer"].get("limit_val_batches", dev_batches(config["trainer"]) or None),
        console=Console(stderr=True),
        scores=training.scores,
        draw=training.draw,
    )


def _check_same_data(info: DataInfo, record: RunRecord, directory: RunDirectory) -> None:
    """Raise VarlabError if a resumed run began with other images."""
    before = record.data
    if before is not None and (before["hash"], before.get("tokens")) != (info.hash, info.tokens):
        raise VarlabError(
            f"{info.path} holds other images than when {directory.path} began: start a new run with another out=."
        )


def _data_record(info: DataInfo, leakage: str) -> Config:
    names = ("hash", "tokens", "source", "num_classes")
    return {
        "path": str(info.path),
        **{name: getattr(info, name) for name in names},
        "classes": list(info.classes),
        "image_size": list(info.image_size),
        "counts": dict(info.counts),
        **({"leakage": leakage} if leakage else {}),
    }
