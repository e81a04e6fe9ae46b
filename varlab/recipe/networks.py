"""The networks of scores and losses that are trained by runs: the judge, and the classifier of the perceptual loss.

``conf/extractor`` and ``conf/perceptual`` name these functions. Like any target there, they get the live ``parents``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from varlab.checkpoint import load_weights
from varlab.data.folders.class_names import permuted
from varlab.losses.perceptual import ClassifierPerceptual
from varlab.metrics.classifier import Classifier
from varlab.metrics.extractors import ClassifierExtractor
from varlab.metrics.held_out_accuracy import HeldOutAccuracy
from varlab.recipe.objects import make
from varlab.recipe.preflight.named_runs import read_classifier
from varlab.rng import Rng
from varlab.run.record import FILE, read_finished, read_record
from varlab.run.trust import Trust, described_by
from varlab.types import VarlabError

if TYPE_CHECKING:
    from varlab.recipe.parents import Parents


def judge(*, parents: Parents, run: str) -> ClassifierExtractor:
    """Load a classifier of the data as the extractor. run: its directory, or auto. VarlabError if its classes do not fit."""
    classifier, info = parents.classifier("judge", run), parents.info
    parent = parents.used["judge"]
    held_out = HeldOutAccuracy.from_json(parent.held_out)
    if held_out.predicts == "labels" and classifier.num_classes != info.num_classes:
        raise VarlabError(
            f"The judge {parent.run} knows {classifier.num_classes} classes, {info.path} has {info.num_classes}."
        )
    trained = (read_record(Path(parent.run)).data or {}).get("classes", [])
    if held_out.predicts == "labels" and permuted(trained, info.classes):
        raise VarlabError(
            f"The judge {parent.run} knows the classes of {info.path} in another order: train a judge on these shards."
        )
    return ClassifierExtractor(classifier=classifier, hash=parent.weights_sha256, held_out=held_out)


def classifier_distance(
    *, parents: Parents, run: str, weights: Sequence[float], autocast: bool | None = None
) -> ClassifierPerceptual:
    """Load a classifier as the perceptual distance. run: its directory, or auto. The others: see ``ClassifierPerceptual``."""
    classifier = parents.classifier("perceptual", run)
    return ClassifierPerceptual(classifier=classifier, weights=weights, autocast=autocast)


def load_classifier(run: Path, trust: Trust | None = None) -> Classifier:
    """Load the classifier of a finished run. trust: what its record may build beside varlab's own."""
    build = read_classifier(run).build
    with described_by(run / FILE, "classifier that can be built"), Rng(0).scope("init/classifier"):
        (trust or Trust()).check(build["classifier"], run / FILE)
        classifier: Classifier = make(build["classifier"])
    load_weights(classifier, run / "weights.safetensors")
    return classifier


def held_out_accuracy(run: Path) -> HeldOutAccuracy:
    """How well the classifier of a run does, as the run recorded it; earlier versions recorded nothing."""
    record = read_finished(run)
    known = record.outcome.values.get("held_out")
    if isinstance(known, dict):
        return HeldOutAccuracy.from_json(known)
    if record.build["classifier"]["num_classes"] == 1:  # it is always right, and so is anyone
        counts = (record.data or {}).get("counts") or {}
        return HeldOutAccuracy(accuracy=1.0, majority=1.0, images=counts.get("val", 0))
    return HeldOutAccuracy(predicts=record.build.get("predicts", "labels"))
