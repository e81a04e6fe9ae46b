"""Runs that a run stands on, found and loaded: a tokenizer for a generator, a classifier as judge or perceptual net."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from varlab.checkpoint import load_weights
from varlab.config import Config
from varlab.files import sha256
from varlab.losses.perceptual import LPIPS, ClassifierPerceptual
from varlab.metrics.classifier import Classifier
from varlab.metrics.extractors import ClassifierExtractor, Extractor, InceptionExtractor
from varlab.recipe.assembly import build_order, build_tokenizer, make
from varlab.rng import Rng
from varlab.run.directory import read_run
from varlab.tokenizer import VQTokenizer
from varlab.types import DataInfo, VarlabError

logger = logging.getLogger(__name__)

RUNS = Path("runs")


def finished_runs(near: Path) -> Iterator[tuple[Path, Config]]:
    """Finished trainings under runs/ and beside a directory, the nearest in the tree first, then the newest."""
    roots = [root for root in (RUNS, near.parent) if root.is_dir() and root.resolve() != Path.cwd()]
    files = {file.resolve() for root in roots for file in root.rglob("run.json")}
    for file in sorted(files, key=lambda f: (-_shared(f.parent, near), -f.stat().st_mtime)):
        try:
            record = read_run(file.parent)
        except VarlabError as error:
            logger.warning("%s", error)
            continue
        if record.get("command") == "train" and record["outcome"]["state"] == "finished":
            yield Path(os.path.relpath(file.parent)), record


def _shared(a: Path, b: Path) -> int:
    """How many folders two paths have in common."""
    return len(Path(os.path.commonpath([a.resolve(), b.resolve()])).parts)


def _pick(setting: str, near: Path, fits: Callable[[Config], bool], missing: str) -> Path:
    """The run that a setting names, or for "auto" the first finished one that fits. VarlabError says what is missing."""
    if setting != "auto":
        _finished(Path(setting))
        return Path(setting)
    for path, record in finished_runs(near):
        if fits(record):
            return path
    raise VarlabError(missing)


def _finished(path: Path) -> Config:
    """The record of a run to stand on. VarlabError where it has not come to its end."""
    record = read_run(path)
    if (state := record["outcome"]["state"]) != "finished":
        raise VarlabError(f"{path} is {state}, not finished: run its command again to finish it first.")
    return record


def _same_data(record: Config, info: DataInfo) -> bool:
    """Whether a run was trained on the same images of the same shards."""
    view = (record["config"].get("data") or {}).get("view", "image")
    return (record.get("data") or {}).get("hash") == info.hash and view == info.view


# -- classifiers ---------------------------------------------------------------------------------------------------------


def find_classifier(setting: str, *, role: str, info: DataInfo, near: Path) -> Path:
    """The run of a classifier. auto: one trained on the same shards for this role (judge or perceptual)."""
    return _pick(
        setting,
        near,
        lambda r: (r.get("build") or {}).get("role") == role and _same_data(r, info),
        f"No finished classifier with role={role} trained on {info.path} lies under {RUNS}/: "
        f"train one (varlab train task=classifier role={role}), or name its directory.",
    )


def load_classifier(run: Path) -> tuple[Classifier, str]:
    """A trained classifier and the sha256 of its weights."""
    build = read_run(run).get("build") or {}
    if "classifier" not in build:
        raise VarlabError(f"{run} is not the run of a classifier (varlab train task=classifier).")
    with Rng(0).scope("init/classifier"):
        classifier = make(build["classifier"])
    load_weights(classifier, run / "weights.safetensors")
    return classifier, sha256(run / "weights.safetensors")


def load_extractor(config: Config, *, info: DataInfo, near: Path) -> tuple[Extractor, Config]:
    """The extractor of conf/extractor, and what the record of parents says of it."""
    if config["kind"] == "inception":
        return InceptionExtractor(weights=config["weights"]), {}
    run = find_classifier(config["run"], role="judge", info=info, near=near)
    classifier, digest = load_classifier(run)
    if classifier.num_classes != info.num_classes:
        raise VarlabError(
            f"The judge {run} knows {classifier.num_classes} classes, {info.path} has {info.num_classes}."
        )
    return ClassifierExtractor(classifier=classifier, hash=digest), {
        "judge": {"run": str(run), "weights_sha256": digest}
    }


def load_perceptual(
    config: Config | None, *, info: DataInfo, near: Path
) -> tuple[LPIPS | ClassifierPerceptual | None, Config]:
    """The perceptual distance of conf/perceptual, and what the record of parents says of it."""
    if config is None:
        return None, {}
    values = {key: value for key, value in config.items() if key not in ("kind", "run")}
    if config["kind"] == "lpips":
        return LPIPS(**values), {}
    run = find_classifier(config["run"], role="perceptual", info=info, near=near)
    classifier, digest = load_classifier(run)
    parents = {"perceptual": {"run": str(run), "weights_sha256": digest}}
    return ClassifierPerceptual(classifier=classifier, **values), parents


# -- tokenizers ----------------------------------------------------------------------------------------------------------


def find_tokenizer(setting: str, *, order: Config, info: DataInfo, near: Path) -> Path:
    """The run of a tokenizer. auto: of those trained on the same shards that fit the order, one with the fewest tokens."""
    if setting != "auto":
        return _tokenizer_run("tokenizer_run", setting)
    fitting = [
        (build_order(order, tokenizer).num_positions, i, path)
        for i, (path, record) in enumerate(finished_runs(near))
        if record["config"].get("kind") == "tokenizer" and _same_data(record, info)
        if (tokenizer := _if_fits(order, record)) is not None
    ]
    if not fitting:
        raise VarlabError(
            f"No finished tokenizer trained on {info.path} under {RUNS}/ fits the order {order['_target_']}: train one "
            "(varlab train task=tokenizer tokenizer=multi or single), or name its directory with tokenizer_run=DIR."
        )
    path = min(fitting)[2]
    logger.info("tokenizer_run=auto took %s", path)
    return path


def find_condition_tokenizer(setting: str, *, info: DataInfo, near: Path) -> Path:
    """The run of a condition's tokenizer. auto: one trained on the conditions of the same shards (data.view=condition)."""
    if setting != "auto":
        return _tokenizer_run("condition.tokenizer_run", setting)
    seconds = replace(info, view="condition")
    return _pick(
        setting,
        near,
        lambda r: r["config"].get("kind") == "tokenizer" and _same_data(r, seconds),
        f"No finished tokenizer of the conditions of {info.path} lies under {RUNS}/: train one (varlab train "
        "task=tokenizer data.view=condition), or name its directory with condition.tokenizer_run=DIR.",
    )


def _tokenizer_run(key: str, setting: str) -> Path:
    """The named run. VarlabError where it is not that of a tokenizer, or has not come to its end."""
    build = _finished(Path(setting)).get("build") or {}
    if "tokenizer" not in build:
        raise VarlabError(f"{key}={setting} is not the run of a tokenizer (varlab train task=tokenizer).")
    return Path(setting)


def _if_fits(order: Config, record: Config) -> VQTokenizer | None:
    try:
        tokenizer = build_tokenizer(record["build"]["tokenizer"], Rng(0))
        build_order(order, tokenizer)
    except VarlabError:
        return None
    return tokenizer


def load_tokenizer(weights: Path, config: Config) -> VQTokenizer:
    """A trained tokenizer, frozen."""
    tokenizer = build_tokenizer(config, Rng(0))
    load_weights(tokenizer, weights)
    return tokenizer.eval().requires_grad_(False)
