"""The samples of a run, drawn while they are scored."""

from __future__ import annotations

import torch

from varlab.config import Config
from varlab.metrics.extractors import Extractor
from varlab.recipe.assembly import image_sampler
from varlab.recipe.finished_run import FinishedRun
from varlab.recipe.preflight.named_runs import require_generator
from varlab.recipe.sample_file.origin import GUIDANCE, ROUNDING, balance, weight_facts
from varlab.score.image_sampler import Rejection, balanced_labels
from varlab.score.image_set import SampledImages
from varlab.types import VarlabError

__all__ = ["run_samples", "spread_of"]


def spread_of(run: FinishedRun, n: int) -> str:
    """How often each class occurs among the first n samples of a generator, in words."""
    transformer, _ = run.model.generator()
    if run.model.condition is not None:
        return "as the conditions of val"
    return balance(balanced_labels(torch.arange(n), transformer.num_classes), transformer.num_classes)


def run_samples(config: Config, run: FinishedRun, extractor: Extractor) -> tuple[SampledImages, Config]:
    """The first ``n`` samples of a generator, and what they are made with. extractor: the judge of ``reject``."""
    require_generator(run.path, run.record)
    sampler, (transformer, _) = run.sampler(), run.model.generator()
    if sampler.smooth:
        raise VarlabError("smooth=true is for pictures only, never for scores: evaluate with smooth=false.")
    rejection = None
    if config["reject"] is not None:
        rejection = Rejection(judge=extractor, rate=config["reject"], num_classes=transformer.num_classes)
    data = None if run.model.condition is None else run.data()
    source = image_sampler(
        run.model, data, seed=config["seed"], batch=config["batch"], sampler=sampler, rejection=rejection
    )
    weights, n = weight_facts(run.path, config["weights"]), config["n"]
    images = SampledImages(
        source, n=n, name=str(run.path), hash=weights["weights_sha256"], image_size=run.model.tokenizer.image_size
    )
    asked = {key: config[key] for key in ("weights", "seed", "reject")}
    return images, {
        "sampler": sampler.settings(),
        "balance": spread_of(run, n),
        "rounding": ROUNDING,
        "guidance": GUIDANCE,
        **weights,
        **asked,
    }
