"""The samples of a run, drawn while they are scored."""

from __future__ import annotations

import torch
from torch import Tensor

from varlab.config import Config
from varlab.data import BaseDataModule
from varlab.metrics.extractors import Extractor
from varlab.recipe.assembly import image_sampler
from varlab.recipe.finished_run import FinishedRun
from varlab.recipe.preflight.named_runs import require_generator
from varlab.recipe.sample_file.origin import GUIDANCE, ROUNDING, balance, weight_facts
from varlab.rng import Rng
from varlab.score.image_sampler import Rejection, balanced_labels, labels_of_val
from varlab.score.image_set import SampledImages
from varlab.types import VarlabError

__all__ = ["asked_labels", "run_samples", "spread_of"]


def asked_labels(config: Config, data: BaseDataModule | None) -> Tensor | None:
    """label_N that samples get in turn; None for every class equally often. data: of ``labels=data``."""
    asked = config["labels"]
    if asked not in ("balanced", "data"):
        raise VarlabError(f"labels={asked} is unknown: use balanced or data.")
    return labels_of_val(data, Rng(config["seed"])) if asked == "data" and data is not None else None


def spread_of(run: FinishedRun, n: int, label_N: Tensor | None) -> str:
    """How often each class occurs among the first n samples of a generator, in words. label_N: ``asked_labels``."""
    transformer, _ = run.model.generator()
    if run.model.condition is not None:
        return "as the conditions of val"
    ids_N, num_classes = torch.arange(n), transformer.num_classes
    return balance(
        balanced_labels(ids_N, num_classes) if label_N is None else label_N[ids_N % len(label_N)], num_classes
    )


def run_samples(config: Config, run: FinishedRun, extractor: Extractor) -> tuple[SampledImages, Config]:
    """The first ``n`` samples of a generator, and what they are made with. extractor: the judge of ``reject``."""
    require_generator(run.path, run.record)
    sampler, (transformer, _) = run.sampler(), run.model.generator()
    if sampler.smooth:
        raise VarlabError("smooth=true is for pictures only, never for scores: evaluate with smooth=false.")
    rejection = None
    if config["reject"] is not None:
        rejection = Rejection(judge=extractor, rate=config["reject"], num_classes=transformer.num_classes)
    data = run.data() if run.model.condition is not None or config["labels"] == "data" else None
    label_N, seed, batch = asked_labels(config, data), config["seed"], config["batch"]
    source = image_sampler(
        run.model, data, seed=seed, batch=batch, sampler=sampler, rejection=rejection, label_N=label_N
    )
    weights, n = weight_facts(run.path, config["weights"]), config["n"]
    images = SampledImages(
        source, n=n, name=str(run.path), hash=weights["weights_sha256"], image_size=run.model.tokenizer.image_size
    )
    asked = {key: config[key] for key in ("weights", "seed", "reject", "labels")}
    return images, {
        "sampler": sampler.settings(),
        "balance": spread_of(run, n, label_N),
        "rounding": ROUNDING,
        "guidance": GUIDANCE,
        **weights,
        **asked,
    }
