"""``varlab sample``: images from a trained generator, as a grid, a strip of growing images, and an array for evaluators."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from varlab.cli.conclusion import say_next
from varlab.cli.progress_bar import progress_bar
from varlab.config import Config
from varlab.data.image.grid import poster, write_png
from varlab.files import atomic_write, sha256
from varlab.json_file import write_sealed_json
from varlab.launch.environment import rank_device, started_ranks
from varlab.recipe.finished_run import FinishedRun
from varlab.recipe.parents import Parents
from varlab.recipe.plans.training_pictures import columns_for
from varlab.recipe.sample_file.origin import origin_of
from varlab.recipe.sample_file.sample_writer import SampleWriter
from varlab.recipe.sampling_conditions import SamplingConditions
from varlab.run.directory import RunDirectory
from varlab.run.trust import Trust
from varlab.sample.class_labels import ClassLabels
from varlab.score.image_sampler import Rejection, balanced_labels
from varlab.types import VarlabError, to_uint8

__all__ = ["run"]

logger = logging.getLogger(__name__)

_NAMED = ("cfg", "ramp", "cfg_steps", "temperature", "top_k", "top_p")  # settings that the log names
_FEW_COLUMNS = 8  # of a grid; fewer classes get several columns each


def run(config: Config, directory: RunDirectory) -> Config:
    """Write samples.png, growth.png and samples.npz (arr_0 uint8 NHWC, arr_1 labels: what the ADM evaluator reads).

    With ``format=npz`` only samples.npz, which is then made part by part on any number of ranks, and samples.json.
    """
    run = FinishedRun(config | {"device": rank_device(config["device"])})
    sampler, (transformer, _) = run.sampler(), run.model.generator()
    conditions = SamplingConditions(config, run)
    label_N = _labels(config, run.model.classes, conditions)
    draw = _drawing(config, run, conditions, label_N)
    if config["kind"] == "npz":
        return _write_file(config, run, directory, draw, label_N, conditions.size)
    drawn: list[Tensor] = []
    with progress_bar("sampling") as progress:
        for ids_B in torch.arange(config["n"]).split(config["batch"]):
            drawn.append(draw(ids_B))
            progress(int(ids_B[-1]) + 1, config["n"])
    img_u8 = torch.cat(drawn)
    shown_N = torch.arange(min(config["shown"], len(img_u8)))
    asked = config["labels"]
    columns = min(_columns(len(asked) if isinstance(asked, list) else transformer.num_classes), len(shown_N))
    pictures = directory.path / "pictures"
    names = _names(label_N[shown_N], columns, run.model.classes)
    write_png(pictures / "samples.png", poster(img_u8[shown_N], columns=columns, names=names))
    if (given := conditions.shown(shown_N)) is not None:
        write_png(pictures / "conditions.png", poster(given, columns=columns))
    if not conditions.large:
        grown_N = torch.arange(min(config["grown"], len(label_N)))
        frames = run.model.growth(
            label_N[grown_N], seed=config["seed"], cond_BN=conditions.tokens(grown_N, label_N[grown_N])
        )
        strip = poster(to_uint8(frames).flatten(0, 1).cpu(), columns=frames.shape[1])
        write_png(pictures / "growth.png", strip)
    with atomic_write(directory.path / "samples.npz") as file:
        np.savez_compressed(file, arr_0=img_u8.permute(0, 2, 3, 1).numpy(), arr_1=label_N.numpy())
    settings = sampler.settings()
    used = ", ".join(f"{key}={settings[key]}" for key in _NAMED if settings.get(key) is not None)
    logger.info("%d sample%s with %s", len(img_u8), "s" * (len(img_u8) != 1), used)
    say_next(pictures / "samples.png", shlex.join(["varlab", "evaluate", str(run.path), *run.words()]))
    return {"n": len(img_u8), "sampler": settings}


def _names(label_N: Tensor, columns: int, classes: Sequence[str]) -> Sequence[str]:
    """The name of each column whose samples are all of one class; none if one is not so, or if there are no classes."""
    above_C = label_N[:columns]
    same = bool((label_N == above_C[torch.arange(len(label_N)) % columns]).all())
    known = same and len(classes) > 1 and int(above_C.max()) < len(classes)
    return [classes[label] for label in above_C.tolist()] if known else []


def _columns(classes: int) -> int:
    """A column for each class, or several of each if there are few classes."""
    columns = columns_for(classes)
    return columns * max(1, _FEW_COLUMNS // columns)


def _write_file(
    config: Config,
    run: FinishedRun,
    directory: RunDirectory,
    draw: Callable[[Tensor], Tensor],
    label_N: Tensor,
    size: tuple[int, int],
) -> Config:
    """The ADM suite's file of samples, and beside it what it was made with."""
    origin = origin_of(config, run, label_N, size)
    writer = SampleWriter(
        directory=directory,
        origin=origin,
        draw=draw,
        label_N=label_N,
        size=size,
        seed=config["seed"],
        batch=config["batch"],
    )
    with progress_bar("sampling") as progress:
        writer.write(world=started_ranks() or 1, progress=progress)
    if directory.rank != 0:
        return {}
    write_sealed_json(writer.path.with_suffix(".json"), {"file_sha256": sha256(writer.path)} | origin)
    writer.remove_parts()
    logger.info("%d sample%s: %s", len(label_N), "s" * (len(label_N) != 1), writer.path)
    return {"n": len(label_N), "sampler": origin["sampler"]}


def _drawing(
    config: Config, run: FinishedRun, conditions: SamplingConditions, label_N: Tensor
) -> Callable[[Tensor], Tensor]:
    """img_u8_B3HW of samples by number, on the CPU; the best candidate of each with ``reject=``."""
    rejection = _rejection(config, run)

    def draw(ids_B: Tensor) -> Tensor:
        label_B = label_N[ids_B]

        def one(draw_ids_B: Tensor) -> Tensor:
            return to_uint8(conditions.sample(label_B, ids_B=ids_B, draw_ids_B=draw_ids_B, seed=config["seed"]))

        return (one(ids_B) if rejection is None else rejection(one, ids_B, label_B.to(run.model.device))).cpu()

    return draw


def _rejection(config: Config, run: FinishedRun) -> Rejection | None:
    """Reject by the judge of the run's shards."""
    if config["reject"] is None:
        return None
    judge = Parents(info=run.data().info, near=run.path, trust=Trust.of(config.get("trust"))).extractor(
        config["extractor"]
    )
    transformer, _ = run.model.generator()
    return Rejection(judge=judge.to(run.model.device), rate=config["reject"], num_classes=transformer.num_classes)


def _labels(config: Config, classes: Sequence[str], conditions: SamplingConditions) -> Tensor:
    """label_N: the classes asked for in turn; by default those of the conditions' images, or all classes in turn.

    The number of classes stands for "no class".
    """
    ids_N = torch.arange(config["n"])
    if config["labels"] is None:
        own = conditions.labels(ids_N)
        return balanced_labels(ids_N, len(classes)) if own is None else own
    asked = torch.tensor(ClassLabels(classes).indices(config["labels"]))
    if len(asked) == 0:
        raise VarlabError("labels=[] names no class: give labels=[0,3], or leave it out for all classes.")
    return asked[ids_N % len(asked)]
