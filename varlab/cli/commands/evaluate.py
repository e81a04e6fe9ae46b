"""``varlab evaluate``: the scores of a trained tokenizer or generator, each with its protocol."""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from varlab.cli.conclusion import describe_scores, say_next
from varlab.cli.progress_bar import progress_bar
from varlab.config import Config, shell_word
from varlab.data import BaseDataModule
from varlab.files import remove_drafts
from varlab.json_file import write_sealed_json
from varlab.launch.environment import rank_device, started_ranks
from varlab.metrics.comparison import Neighbours
from varlab.metrics.distribution.inception_score import SeededInceptionScore
from varlab.metrics.extractors import Extractor
from varlab.metrics.own_metrics import OwnMetrics
from varlab.metrics.protocol import protocol, protocol_name
from varlab.metrics.tokenizer_scores import ReconstructionScores, plain_psnr
from varlab.recipe.assembly import example_slots, image_sampler
from varlab.recipe.finished_run import FinishedRun, device_of
from varlab.recipe.flops import FlopCounter
from varlab.recipe.objects import metric_settings, own_metrics
from varlab.recipe.parents import Parents
from varlab.recipe.preflight.data_facts import note_leakage, require_val_to_score
from varlab.recipe.preflight.named_runs import require_same_classes
from varlab.recipe.sample_file.feature_spaces import feature_spaces
from varlab.recipe.sample_file.run_facts import run_facts
from varlab.recipe.sample_file.run_samples import asked_labels
from varlab.recipe.sample_file.scored_pictures import draw_neighbours, draw_samples
from varlab.recipe.sample_file.set_evaluation import evaluate_set
from varlab.rng import Rng
from varlab.run.directory import RunDirectory
from varlab.run.record import FILE, Parent
from varlab.run.trust import Trust
from varlab.sample import Sampler
from varlab.score.image_sampler import ImageSampler, Rejection
from varlab.score.image_set import Progress, followed, rank_share
from varlab.score.scorer import GeneratorScorer
from varlab.score.token_scores import token_scores
from varlab.tasks.distributed import collectives
from varlab.tasks.likelihood import likelihood
from varlab.types import Batch, VarlabError

__all__ = ["run"]

logger = logging.getLogger(__name__)

_SOME = 256  # val images of a trivial baseline


def run(config: Config, directory: RunDirectory) -> Config:
    """Score the run. The result is in its ``scores/<protocol>.json`` and in this command's outcome.

    Several ranks share samples and images, and compute the same scores; rank 0 writes.
    """
    config = config | {"device": rank_device(config["device"])}
    if (world := started_ranks() or 1) > 1:
        from varlab.tasks.distributed.strategy import open_process_group  # imports Lightning

        open_process_group(device_of(config["device"]), rank=directory.rank, world=world)
    with progress_bar("scores") as progress:
        if config["samples"] is not None or config["reference"] is not None:
            return evaluate_set(config, directory, progress)
        run = FinishedRun(config)
        data = run.data()
        require_val_to_score(data.info)
        parents = Parents(info=data.info, near=run.path, trust=Trust.of(config.get("trust")))
        extractor = parents.extractor(config["extractor"]).to(run.model.device)
        judge = dict(parents.used)
        facts = run_facts(config, run, data, extractor)  # refuses a named protocol that does not fit
        source, found = None, None
        if run.model.transformer is not None:
            source = _source(config, run, data, extractor)
            result, found = _generator(config, run, data, extractor, source, progress)
        else:
            result = _tokenizer(config, run, data, extractor, parents, progress)
    result["protocol"] |= facts
    if leakage := note_leakage(str(data.path), data.duplicates.leakage):
        result["protocol"]["leakage"] = leakage
    result["images"] = run.record.outcome.images  # how far the scored run was trained
    name = protocol_name(result["protocol"])
    file, pictures = run.path / "scores" / f"{name}.json", run.path / "pictures"
    if directory.rank == 0:
        if source is not None and found is not None:
            strip = pictures / "neighbours" / f"{name}.png"
            draw_neighbours(strip, found, samples=source.at, train=partial(data.images, "train"))
        remove_drafts(file.parent, of=f"{file.name}.*")  # of a killed evaluation
        write_sealed_json(file, result)
    directory.update(parents=judge | {"run": Parent(run=config["run"])})
    logger.info("%s: %s", file, ", ".join(f"{k} {v:.4g}" for k, v in result["scores"].items() if "/" not in k))
    if directory.rank == 0:
        drawn = pictures / "scored" / f"{name}.png"
        picture = None if source is None else draw_samples(drawn, source=source, data=data)
        _conclude(run, data, result, picture)
    return {"scores_file": str(file), **result}


def _conclude(run: FinishedRun, data: BaseDataModule, result: Config, picture: Path | None) -> None:
    """Say what the scores mean, and what comes next."""
    val_N = torch.arange(min(_SOME, data.info.counts["val"]))
    plain = plain_psnr(data.images("val", val_N)) if "psnr" in result["scores"] else None
    word = shell_word(str(run.path))
    judge = result["protocol"].get("judge") or {}
    if said := describe_scores(result["scores"], judge=judge, plain_psnr=plain):
        logger.info("%s", said)
    following = f"varlab train task=generator tokenizer_run={word} with the same data"
    if picture:
        following = shlex.join(["varlab", "sample", str(run.path), *run.words()])
    say_next(picture, following, f"varlab report {shell_word(str(run.path.parent))}")


def _reference(data: BaseDataModule, split: str) -> Config:
    return {"name": f"{data.info.source}/{split}", "hash": data.info.hash, "n": data.info.counts[split]}


def _tokenizer(
    config: Config,
    run: FinishedRun,
    data: BaseDataModule,
    extractor: Extractor,
    parents: Parents,
    progress: Progress,
) -> Config:
    """Compare reconstructions of the val split with its images."""
    setting, trained_with = run.record.config.get("perceptual"), run.record.parents.get("perceptual")
    if setting is not None and trained_with is not None:
        setting = setting | {"run": trained_with.run}
    if config.get("perceptual") is not None:
        setting = config["perceptual"]
    else:
        parents.trust.check(setting, run.path / FILE)
    perceptual = parents.perceptual(setting)
    if perceptual is not None:
        perceptual.to(run.model.device)
    net = parents.used.get("perceptual")
    distance = perceptual.distance if perceptual else None
    own = own_metrics(config["metrics"])
    ris = SeededInceptionScore(splits=config["metrics"]["splits"], seed=config["seed"])
    tally = ReconstructionScores(run.model.tokenizer, extractor=extractor, perceptual=distance, own=own, ris=ris)
    scores = tally.over(_val(config, run, data, "reconstructions", progress))
    asked = config["metrics"].get("tokens")
    if asked:
        ways = {"data": data, "extractor": extractor, "batch": config["batch"], "seed": config["seed"]}
        scores |= token_scores(run.model.tokenizer, **ways, **asked)
    n = data.info.counts["val"]
    named = protocol(extractor=extractor, reference=_reference(data, "val"), n=n, sampler=None, seed=config["seed"])
    named |= {"weights": config["weights"], "perceptual": net.weights_sha256 if net else perceptual and perceptual.hash}
    if config.get("perceptual") is not None:  # files are named by their hashes alone
        own_settings = {key: value for key, value in config["perceptual"].items() if key not in ("run", "vgg", "lpips")}
        named |= {"perceptual_settings": own_settings}
    if net is not None and net.held_out:
        named |= {"perceptual_network": net.held_out}
    if asked:
        named |= {"tokens": asked}
    if own.best:
        named |= {"metrics": {"own": config["metrics"]["own"]}}
    return {"kind": "tokenizer", "protocol": named, "scores": scores, "cost": {}} | _best(own, scores)


def _val(config: Config, run: FinishedRun, data: BaseDataModule, what: str, progress: Progress) -> Iterator[Batch]:
    """This rank's val images, each reported once it is done. what: is done with them."""
    batches = rank_share(data, "val", batch=config["batch"], device=run.model.device)
    return followed(batches, len, data.info.counts["val"], what, progress)


def _best(own: OwnMetrics, scores: Config) -> Config:
    """Whether more or less is better of each score of an own metric, for reports."""
    return {"best": own.ranked(scores)} if own.best else {}


def _sampling_flops(run: FinishedRun, sampler: Sampler) -> float:
    """Of one sample."""
    (transformer, order), count = run.model.generator(), FlopCounter()
    slots = example_slots(order, run.model.tokenizer, run.model.condition)
    forward = count.transformer(transformer, slots)
    return count.sampling(forward, run.model.tokenizer, guided=sampler.guides(transformer.num_classes))


def _source(config: Config, run: FinishedRun, data: BaseDataModule, extractor: Extractor) -> ImageSampler:
    """The samples that are scored. VarlabError where their settings are for pictures only."""
    model = run.model
    (transformer, _), condition = model.generator(), model.condition
    require_same_classes(list(model.classes), data.info)
    if condition is not None:
        condition.check(data.info)
    sampler, seed = run.sampler(), config["seed"]
    if sampler.smooth:
        raise VarlabError("smooth=true is for pictures only, never for scores: evaluate with smooth=false.")
    rejection = None
    if config["reject"] is not None:
        rejection = Rejection(judge=extractor, rate=config["reject"], num_classes=transformer.num_classes)
    label_N = asked_labels(config, data)
    return image_sampler(
        model, data, seed=seed, batch=config["batch"], sampler=sampler, label_N=label_N, rejection=rejection
    )


def _generator(
    config: Config,
    run: FinishedRun,
    data: BaseDataModule,
    extractor: Extractor,
    source: ImageSampler,
    progress: Progress,
) -> tuple[Config, Neighbours | None]:
    """Compare samples with the train split; the val split is compared with it, too. Also returns ``neighbours``."""
    model, sampler, rejection = run.model, source.sampler, source.rejection
    (transformer, order), condition, n, seed = model.generator(), model.condition, config["n"], config["seed"]
    settings, spaces = metric_settings(config["metrics"]), feature_spaces(config, data.info, run.path)
    settings |= {"spaces": {name: space for name, space in spaces.items() if space.hash != extractor.hash}}
    scorer = GeneratorScorer(source=source, extractor=extractor, data=data, n=n, progress=progress, **settings)
    scores = scorer.compare()
    nats = likelihood(
        transformer,
        order=order,
        tokenizer=model.tokenizer,
        condition=condition,
        rng=Rng(run.record.config["seed"]),
    )
    scores["val_nll"] = nats.over(_val(config, run, data, "likelihood of val images", progress))["nll"]
    named = protocol(
        extractor=extractor, reference=_reference(data, "train"), n=n, sampler=sampler.settings(), seed=seed
    )
    if config["labels"] == "data":
        named |= {"labels": "as often as in val"}
    if settings["spaces"]:
        named |= {"spaces": {name: space.hash for name, space in settings["spaces"].items()}}
    if rejection is not None:
        named |= {"rejection": {"candidates": rejection.candidates, "judge": extractor.hash}}
    if len(model.classes) > 1 and list(model.classes) != list(data.info.classes):
        named |= {"classes": "class names unknown: the run's labels are those of the same number in the data"}
    if condition is not None:
        named |= {"conditions": f"{condition.describe(data.info)} of val, cyclic"}
    seconds = sum(collectives.gather_objects(source.seconds))
    drawn = n * (rejection.candidates if rejection else 1)
    result: Config = {
        "kind": "generator",
        "protocol": named | {"metrics": config["metrics"], "weights": config["weights"]},
        "scores": scores,
        "by_class": scorer.by_class,
        "cost": {"sampling_flops": drawn * _sampling_flops(run, sampler), "sampling_seconds": round(seconds, 3)},
        **_best(settings["own"], scores),
    }
    if (found := scorer.neighbours) is not None:
        result["neighbours"] = found.to_json()
    return result, found
