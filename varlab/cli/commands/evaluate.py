"""``varlab evaluate``: the scores of a trained tokenizer or generator, each with its protocol."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from varlab.config import Config
from varlab.data import BaseDataModule
from varlab.files import write_json
from varlab.flops import sampling_flops
from varlab.metrics.extractors import Extractor
from varlab.metrics.protocol import protocol, protocol_name
from varlab.metrics.tokenizer_scores import score_tokenizer
from varlab.model import Model
from varlab.recipe import parents
from varlab.recipe.assembly import example_slots
from varlab.recipe.finished_run import sampler_of, shards, trained
from varlab.rng import Rng
from varlab.run.directory import RunDirectory
from varlab.score.image_sampler import ImageSampler, Rejection, ValConditions
from varlab.score.scorer import GeneratorScorer
from varlab.tasks.base import without_padding
from varlab.tasks.likelihood import likelihood
from varlab.types import VarlabError

__all__ = ["run"]

logger = logging.getLogger(__name__)


def run(cfg: DictConfig, directory: RunDirectory) -> Config:
    """Score the run and leave the result in its ``scores/<protocol>.json``; the outcome holds the same."""
    config: Config = OmegaConf.to_container(cfg)  # type: ignore[assignment]
    model, record = trained(config)
    data = shards(config, record)
    extractor, judge = parents.load_extractor(config["extractor"], info=data.info, near=Path(config["run"]))
    extractor.to(model.device)
    score = _tokenizer if model.transformer is None else _generator
    result = score(config, model, record, data, extractor)
    file = Path(config["run"]) / "scores" / f"{protocol_name(result['protocol'])}.json"
    file.parent.mkdir(exist_ok=True)
    write_json(file, result)
    directory.update(parents=judge | {"run": {"run": config["run"]}})
    logger.info("%s: %s", file, ", ".join(f"{k} {v:.4g}" for k, v in result["scores"].items() if "/" not in k))
    return {"scores_file": str(file), **result}


def _reference(data: BaseDataModule, split: str) -> Config:
    return {"name": f"{data.info.source}/{split}", "hash": data.info.hash, "n": data.info.counts[split]}


def _tokenizer(config: Config, model: Model, record: Config, data: BaseDataModule, extractor: Extractor) -> Config:
    """Reconstructions of the val split against the same images."""
    found = record["parents"].get("perceptual")
    perceptual, net = None, Config()
    if record["config"].get("perceptual") is not None:
        setting = record["config"]["perceptual"] | ({"run": found["run"]} if found else {})
        perceptual, net = parents.load_perceptual(setting, info=data.info, near=Path(config["run"]))
        if perceptual is not None:
            perceptual.to(model.device)
    batches = without_padding(data.eval_loader("val", 0, 1, config["batch"]), model.device)
    scores = score_tokenizer(
        model.tokenizer, batches, extractor=extractor, perceptual=perceptual.distance if perceptual else None
    )
    n = data.info.counts["val"]
    named = protocol(extractor=extractor, reference=_reference(data, "val"), n=n, sampler=None, seed=config["seed"])
    named |= {"weights": config["weights"], "perceptual": net.get("perceptual", {}).get("weights_sha256")}
    return {"kind": "tokenizer", "protocol": named, "scores": scores, "cost": {}, "images": _images(record)}


def _generator(config: Config, model: Model, record: Config, data: BaseDataModule, extractor: Extractor) -> Config:
    """Samples against the train split, beside the val split against it."""
    assert model.transformer is not None and model.order is not None
    knows, has = record["build"]["classes"], list(data.info.classes)
    if knows != has and not (
        len(knows) == len(has) and knows == [str(i) for i in range(len(knows))]
    ):  # numbers: no names
        raise VarlabError(f"The run knows the classes {knows}, but {data.info.path} holds {has}.")
    if model.condition is not None:
        model.condition.check(data.info)
    sampler = sampler_of(config, model)
    if sampler.smooth:
        raise VarlabError("smooth=true is for pictures only, never for scores: evaluate with smooth=false.")
    source = ImageSampler(
        transformer=model.transformer,
        order=model.order,
        tokenizer=model.tokenizer,
        sampler=sampler,
        seed=config["seed"],
        batch=config["batch"],
        conditions=ValConditions(data=data, condition=model.condition) if model.condition else None,
        rejection=_rejection(config, extractor, model.transformer.num_classes),
    )
    n = config["n"]
    scores = GeneratorScorer(source=source, extractor=extractor, data=data, n=n, **config["metrics"]).compare()
    scores["val_nll"] = likelihood(
        model.transformer,
        without_padding(data.eval_loader("val", 0, 1, config["batch"]), model.device),
        order=model.order,
        tokenizer=model.tokenizer,
        condition=model.condition,
        rng=Rng(record["config"]["seed"]),
    )["nll"]
    named = protocol(
        extractor=extractor, reference=_reference(data, "train"), n=n, sampler=asdict(sampler), seed=config["seed"]
    )
    if source.rejection is not None:
        named |= {"rejection": {"candidates": source.rejection.candidates, "judge": extractor.hash}}
    if model.condition is not None:
        named |= {"conditions": f"{data.info.condition or 'coordinates'} of val, cyclic"}
    slots = example_slots(model.order, model.tokenizer, model.condition)
    one = sampling_flops(model.transformer, slots, model.tokenizer, guided=sampler.cfg > 0)
    drawn = n * (source.rejection.candidates if source.rejection else 1)
    cost = {"sampling_flops": drawn * one, "sampling_seconds": round(source.seconds, 3)}
    return {
        "kind": "generator",
        "protocol": named | {"metrics": config["metrics"], "weights": config["weights"]},
        "scores": scores,
        "cost": cost,
        "images": _images(record),
    }


def _rejection(config: Config, judge: Extractor, num_classes: int) -> Rejection | None:
    return None if config["reject"] is None else Rejection(judge=judge, rate=config["reject"], num_classes=num_classes)


def _images(record: Config) -> int:
    """How far the scored run was trained."""
    return int(record["outcome"].get("images", 0))
