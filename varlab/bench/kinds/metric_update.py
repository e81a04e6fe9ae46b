"""Scores of a generator: the features of a batch of samples, and the update of every metric with them."""

from __future__ import annotations

import torch
from torch import nn

from varlab.bench.random_networks import extractor
from varlab.bench.synthetic_data import SyntheticData
from varlab.bench.work import Part, Work, Works
from varlab.config import Config
from varlab.metrics.generator_scores import GenerationScores
from varlab.recipe.flops import FlopCounter


def works(config: Config, device: torch.device) -> Works:
    """A batch of random images through the extractor and the metrics of the configuration."""
    extract, count, batch = extractor(config, device), FlopCounter(), config["batch"]
    size = (config["size"], config["size"])
    classes = [str(i) for i in range(extract.num_classes or config["num_classes"])]
    samples = SyntheticData(size=size, classes=classes, batch=batch, seed=config["seed"]).samples("val").to(device)
    scores = GenerationScores(
        num_features=extract.num_features,
        num_classes=extract.num_classes,
        content=extract.knows_content,
        splits=config["metrics"]["splits"],
        neighbours=config["metrics"]["neighbours"],
        manifold=config["metrics"]["manifold"],
        seed=config["seed"],
    ).to(device)

    def turn() -> int:
        features_BF, logits_BK = extract(samples.img_u8_B3HW)
        scores.update_fake(features_BF, logits_BK, samples.label_B)
        return batch

    update = Work(
        name="scores of images",
        turn=turn,
        flops_per_image=count.forward(extract, samples.img_u8_B3HW[:1]),
        parts=_parts(extract, scores),
    )
    return Works(title=f"batch {batch}, {size[0]} pixels", works=[update], facts=count.note())


def _parts(extract: nn.Module, scores: GenerationScores) -> list[Part]:
    metrics = {
        "FID": scores.fid,
        "Inception score": scores.inception_score,
        "precision and recall": scores.manifolds,
        "accuracy": scores.accuracy,
    }
    parts = [Part(name=name, owner=metric, method="update") for name, metric in metrics.items() if metric is not None]
    return [Part(name="extractor", owner=extract, method="forward"), *parts]
