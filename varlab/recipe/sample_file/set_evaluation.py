"""What ``varlab evaluate`` does with anybody's samples, or with a run's samples against a reference of one's own."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

from varlab.config import Config
from varlab.data import BaseDataModule, ShardDataModule
from varlab.data.format.index import FILE as INDEX
from varlab.data.image.augment import Augment
from varlab.data.image.depth import ASSUMED
from varlab.data.image.picture import PixelRules
from varlab.files import sha256
from varlab.json_file import write_sealed_json
from varlab.metrics.extractors import ClassifierExtractor, Extractor
from varlab.metrics.named_protocol import ScoredSet, explain, require_protocol, score_label
from varlab.metrics.own_metrics import OwnMetrics
from varlab.metrics.protocol import protocol, protocol_name
from varlab.recipe.finished_run import FinishedRun, device_of
from varlab.recipe.networks import held_out_accuracy, load_classifier
from varlab.recipe.objects import make, make_part, own_metrics, set_settings
from varlab.recipe.parents import Parents
from varlab.recipe.preflight.named_runs import WEIGHTS, is_judge
from varlab.recipe.sample_file.feature_spaces import feature_spaces
from varlab.recipe.sample_file.origin import GUIDANCE, balance
from varlab.recipe.sample_file.run_facts import code_facts, image_facts
from varlab.recipe.sample_file.run_samples import run_samples
from varlab.recipe.sample_file.scored_pictures import draw_set
from varlab.run.directory import RunDirectory
from varlab.run.trust import Trust
from varlab.score.image_set import FollowedImages, ImageSet, NpzImages, Progress, ShardImages, image_set
from varlab.score.reference import Reference, read_reference, sidecar
from varlab.score.set_scorer import SetScorer
from varlab.score.space_scorer import score_spaces
from varlab.types import VarlabError

__all__ = ["evaluate_set", "open_shards", "set_extractor"]

logger = logging.getLogger(__name__)


def evaluate_set(config: Config, directory: RunDirectory, progress: Progress) -> Config:
    """Score ``samples``, or the samples of ``run``, against ``reference`` or the shards of ``data``."""
    run = FinishedRun(config) if config["run"] is not None else None
    rules = PixelRules(most_pixels=1 << 27, depths=ASSUMED)
    data = _shards(config)
    reference = _reference(config, data, rules)
    judged = run.data() if run and data is None and is_judge(config["extractor"]) else data
    extractor = set_extractor(config, judged, directory.path)
    extractor = extractor.to(device_of(config["device"]))
    samples, made_with = _samples(config, run, rules, extractor)
    own = own_metrics(config["metrics"])
    named = _protocol(config, data, extractor, reference, samples, made_with)
    protocols, left_out = _protocols(config["metrics"], extractor, reference, samples, named["balance"])
    spaces = _spaces(config, data, run, extractor)
    held_out = _held_out(config, data, reference)
    samples = FollowedImages(samples, f"samples {samples.name}", progress)
    if (real := reference.images) is not None:
        reference = replace(reference, images=FollowedImages(real, f"reference {reference.name}", progress))
    scorer = SetScorer(
        samples=samples,
        reference=reference,
        extractor=extractor,
        sheets={name: (set_settings(one), _compared_with(one)) for name, one in protocols.items()},
        seed=config["seed"],
        batch=config["batch"],
        own=own,
        held_out=held_out,
        draws=config["metrics"]["draws"],
    )
    scores = scorer()
    if spaces:
        scores |= _score_spaces(config, spaces, samples, reference, held_out=held_out)
        named["spaces"] = {name: space.hash for name, space in spaces.items()}
    if notes := [*left_out, *scorer.notes, *explain(protocols, scores)]:
        named["notes"] = notes
        for note in notes:
            logger.warning("%s: %s", samples.name, note)
    named["label"] = score_label(config["metrics"].get("protocol"), samples.n, extractor.name)
    result = _result(scorer, scores, named, run, own)
    folder, name = run.path if run else directory.path, protocol_name(named)
    file = folder / "scores" / f"{name}.json"
    if directory.rank == 0:
        draw_set(
            folder / "pictures",
            name,
            samples=samples,
            real=reference.images,
            found=scorer.neighbours,
            of_a_run=run is not None,
        )
        write_sealed_json(file, result)
    logger.info("%s: %s", file, ", ".join(f"{k} {v:.4g}" for k, v in scores.items()))
    return {"scores_file": str(file), **result}


def _result(
    scorer: SetScorer, scores: dict[str, float], named: Config, run: FinishedRun | None, own: OwnMetrics
) -> Config:
    """The content of the file of scores."""
    result: Config = {"kind": "generator" if run else "samples", "protocol": named, "scores": scores, "cost": {}}
    result |= {"best": own.ranked(scores)} if own.best else {}
    result |= {"by_class": scorer.by_class} if scorer.by_class else {}
    result |= {"neighbours": scorer.neighbours.to_json()} if scorer.neighbours else {}
    return result | ({"images": run.record.outcome.images} if run else {})


def _spaces(
    config: Config, data: ShardDataModule | None, run: FinishedRun | None, extractor: Extractor
) -> dict[str, Extractor]:
    """The feature spaces to score in, the first that of ``extractor``; empty where no further one is asked for."""
    if not config["spaces"]:
        return {}
    if data is None:
        raise VarlabError(
            "Several spaces need a reference of shards, whose val images are scored, too (reference=SHARDS)."
        )
    others = feature_spaces(config, data.info, run.path if run else Path(config["samples"]))
    first = {f"{extractor.name}-{extractor.hash[:8]}": extractor}
    return first | {name: space.to(device_of(config["device"])) for name, space in others.items()}


def _held_out(config: Config, data: ShardDataModule | None, reference: Reference) -> ImageSet | None:
    """The val images of the shards that are the reference, where there are some."""
    is_train = isinstance(reference.images, ShardImages) and config["split"] == "train"
    return ShardImages(data, "val") if data is not None and is_train and data.info.counts.get("val") else None


def _score_spaces(
    config: Config,
    spaces: dict[str, Extractor],
    samples: ImageSet,
    reference: Reference,
    held_out: ImageSet | None,
) -> dict[str, float]:
    assert reference.images is not None
    return score_spaces(
        spaces,
        samples=samples,
        train=reference.images,
        held_out=held_out,
        draws=config["metrics"]["draws"],
        seed=config["seed"],
        batch=config["batch"],
    )


def _protocols(
    metrics: Config, extractor: Extractor, reference: Reference, samples: ImageSet, balanced: str
) -> tuple[dict[str, Config], list[str]]:
    """The protocols to score under, by name (empty for a single one), and a sentence for each that does not fit."""
    scored = ScoredSet(
        of="samples",
        n=samples.n,
        image_size=tuple(samples.image_size),
        extractor=extractor.name,
        weights=extractor.hash,
        moments="mu" in reference.moments,
        reference_images=reference.images.n if reference.images else 0,
        balance=balanced,
    )
    several = metrics.get("protocols")
    if not several:
        require_protocol(metrics.get("protocol"), scored)
        return {"": metrics}, []
    fitting, left_out = {}, []
    for name, one in several.items():
        try:
            require_protocol(one.get("protocol"), scored)
            fitting[name] = one
        except VarlabError as error:
            left_out.append(str(error))
    if not fitting:
        raise VarlabError(f"None of the protocols fits: {' '.join(left_out)}")
    return fitting, left_out


def _compared_with(metrics: Config) -> str | None:
    return (metrics.get("protocol") or {}).get("reference")


def _shards(config: Config) -> ShardDataModule | None:
    """The shards that ``reference`` names, or else those of ``data``, which find a judge whatever the reference is."""
    path = config["reference"]
    if path and (Path(path) / INDEX).is_file():
        return open_shards(Path(path), config["batch"])
    data: ShardDataModule | None = make(config["data"]) if config.get("data") else None
    return data


def open_shards(path: Path, batch: int) -> ShardDataModule:
    """Open shards as they were packed."""
    plain = Augment(flip=False, crop=1.0, noise=0.0)
    return ShardDataModule(
        path=path, batch=batch, eval_batch=batch, seed=0, workers=0, augment=plain, cache_bytes=0, max_bad=0.001
    )


def _reference(config: Config, data: BaseDataModule | None, rules: PixelRules) -> Reference:
    named = config["reference"]
    if data is None or (named is not None and not (Path(named) / INDEX).is_file()):
        return read_reference(Path(named), rules=rules)
    images = ShardImages(data, config["split"])
    return Reference(name=images.name, hash=images.hash, images=images)


def set_extractor(config: Config, data: BaseDataModule | None, near: Path) -> Extractor:
    """The extractor of the configuration. data: shards, with which a judge is found; None: its run must be named."""
    setting, trust = config["extractor"], Trust.of(config.get("trust"))
    if data is not None:
        return Parents(info=data.info, near=near, trust=trust).extractor(setting)
    if not is_judge(setting):
        extractor: Extractor = make_part("extractor", setting)
        return extractor
    if setting["run"] == "auto":
        raise VarlabError("There are no shards to find a judge by: give extractor.run=DIR, or extractor=inception.")
    run = Path(setting["run"])
    classifier, held_out = load_classifier(run, trust), held_out_accuracy(run)
    return ClassifierExtractor(classifier=classifier, hash=sha256(run / WEIGHTS["ema"]), held_out=held_out)


def _samples(
    config: Config, run: FinishedRun | None, rules: PixelRules, extractor: Extractor
) -> tuple[ImageSet, Config]:
    """The images to score, and what they were made with, as far as that is known."""
    if run is not None:
        return run_samples(config, run, extractor)
    images = image_set(Path(config["samples"]), rules=rules)
    return images, sidecar(Path(config["samples"]), images.hash) if isinstance(images, NpzImages) else {}


def _protocol(
    config: Config,
    data: ShardDataModule | None,
    extractor: Extractor,
    reference: Reference,
    samples: ImageSet,
    made_with: Config,
) -> Config:
    """All that it takes to measure the same again."""
    wrong = reference.made_with.get("extractor_hash", extractor.hash) != extractor.hash
    if wrong and reference.moments:
        raise VarlabError(
            f"The moments of {reference.name} were made with another extractor ({reference.made_with.get('extractor')}, "
            f"{reference.made_with['extractor_hash'][:12]}, not {extractor.hash[:12]}): give that one, or write them again."
        )
    label_N = samples.label_N if isinstance(samples, NpzImages) else None
    known = made_with.get("balance", "unknown") if label_N is None else balance(label_N, int(label_N.max()) + 1)
    rounding = made_with.get("rounding", "as in the file")
    named = protocol(
        extractor=extractor,
        reference=reference.to_json(),
        n=samples.n,
        sampler=made_with.get("sampler"),
        seed=config["seed"],
    )
    return named | {
        "metrics": config["metrics"],
        "image_size": list(samples.image_size),
        "samples": {"name": samples.name, "hash": samples.hash, "rounding": rounding, "made_with": made_with},
        "balance": known,
        "guidance": made_with.get("guidance", GUIDANCE if config["run"] else "unknown"),
        **image_facts(data),
        **code_facts(),
    }
