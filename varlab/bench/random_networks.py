"""The networks whose work is measured: those of a run, or new ones with random weights, put together as in a training."""

from __future__ import annotations

from pathlib import Path

import torch

from varlab.config import Config
from varlab.losses.perceptual import ClassifierPerceptual, FeatureDistance, PerceptualDistance, VGG16Features
from varlab.metrics.classifier import Classifier
from varlab.metrics.extractors import ClassifierExtractor, Extractor
from varlab.model import Model
from varlab.recipe.assembly import Build, assemble
from varlab.recipe.finished_run import load
from varlab.recipe.networks import load_classifier
from varlab.recipe.objects import make
from varlab.recipe.preflight.fitted_settings import fitted_tokenizer
from varlab.renames import current_name
from varlab.rng import Rng
from varlab.run.trust import Trust

__all__ = ["extractor", "model", "perceptual"]

_VGG_CHANNELS = (64, 128, 256, 512, 512)


def model(config: Config, device: torch.device) -> Model:
    """The tokenizer of the configuration, with its generator if there is a transformer; or the model of ``run``."""
    if config["run"] is not None:
        return load(config["run"], device=device, trust=config["trust"])
    tokenizer = fitted_tokenizer(config["tokenizer"], config["image_size"])
    build = Build(
        tokenizer=tokenizer,
        order=config.get("order"),
        transformer=config.get("transformer"),
        sampler=config.get("sampler"),
        classes=[str(i) for i in range(config.get("num_classes", 0))],
        image_size=[],
        condition=_condition(config, tokenizer),
    )
    return assemble(build, Rng(config["seed"])).to(device)


def _condition(config: Config, tokenizer: Config) -> Config | None:
    """The condition; a tokenizer of its own has the architecture of the images' tokenizer."""
    asked: Config | None = config.get("condition")
    if asked is None:
        return None
    build = {key: value for key, value in asked.items() if key not in ("packing", "tokenizer_run")}
    return build | ({"tokenizer": tokenizer} if "tokenizer_run" in asked else {})


def perceptual(config: Config, device: torch.device) -> PerceptualDistance | None:
    """The distance of ``conf/perceptual``: of a named run or named files, or of a network with random weights."""
    asked: Config | None = config.get("perceptual")
    if asked is None:
        return None
    target = current_name(asked["_target_"]).rpartition(".")[2]
    made: PerceptualDistance
    if target == "LPIPS" and "://" in asked["vgg"]:
        with Rng(config["seed"]).scope("init/perceptual"):
            weights = [torch.ones(n) for n in _VGG_CHANNELS]
            made = FeatureDistance(net=VGG16Features(), weights=weights, autocast=asked["autocast"])
    elif target == "classifier_distance":
        classifier, options = _classifier(config, asked["run"]), ("weights", "autocast")
        made = ClassifierPerceptual(classifier=classifier, **{key: asked[key] for key in options})
    else:
        made = make(asked)
    return made.to(device)


def extractor(config: Config, device: torch.device) -> Extractor:
    """The extractor of ``conf/extractor``: with the weights that it names, or a classifier with random ones."""
    asked = config["extractor"]
    made: Extractor
    if current_name(asked["_target_"]).endswith(".judge"):
        made = ClassifierExtractor(classifier=_classifier(config, asked["run"]), hash="")
    else:
        made = make(asked)
    return made.to(device)


def _classifier(config: Config, run: str) -> Classifier:
    if run != "auto":
        return load_classifier(Path(run), Trust.of(config["trust"]))
    with Rng(config["seed"]).scope("init/classifier"):
        classifier: Classifier = make(config["classifier"], num_classes=config["num_classes"])
    return classifier
