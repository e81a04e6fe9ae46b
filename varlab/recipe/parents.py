"""Find and load the parents of a run: its tokenizer, its condition's tokenizer, its judge and its perceptual network."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from varlab.checkpoint import load_weights
from varlab.config import Config
from varlab.data.folders.class_names import permuted
from varlab.files import atomic_write, sha256
from varlab.losses.perceptual import LPIPS, ClassifierPerceptual
from varlab.metrics.classifier import Classifier
from varlab.metrics.extractors import ClassifierExtractor, Extractor, InceptionExtractor
from varlab.metrics.held_out_accuracy import HeldOutAccuracy
from varlab.recipe.assembly import build_order, build_tokenizer
from varlab.recipe.objects import make
from varlab.rng import Rng
from varlab.run.directory import RunDirectory
from varlab.run.record import Parent, RunRecord, read_finished, read_record
from varlab.tokenizer import VQTokenizer
from varlab.types import DataInfo, VarlabError

logger = logging.getLogger(__name__)

RUNS = Path("runs")


class Parents:
    """The parents of one run. ``used`` collects what run.json stores of them, by role.

    info: the data that the run works on. near: the run's directory; the setting ``auto`` takes the nearest run that fits.
    recorded: the parents of the run's earlier attempts. A resumed run takes the same ones and refuses changed weights.
    """

    def __init__(self, *, info: DataInfo, near: Path, recorded: Mapping[str, Parent] | None = None):
        self._info, self._near, self._recorded = info, near, recorded or {}
        self.used: dict[str, Parent] = {}

    @classmethod
    def of(cls, directory: RunDirectory, info: DataInfo) -> Parents:
        """Return the parents of a training, which may be resumed."""
        return cls(info=info, near=directory.path, recorded=directory.record().parents)

    def use(self, role: str, parent: Parent) -> None:
        """Note a parent. VarlabError if its weights have changed since this run began."""
        before = self._recorded.get(role)
        if before is not None and before.weights_sha256 != parent.weights_sha256:
            raise VarlabError(
                f"The weights of {parent.run} have changed since {self._near} began: start a new run with another out=."
            )
        self.used[role] = parent

    # -- classifiers ---------------------------------------------------------------------------------------------------

    def classifier(self, role: str, setting: str) -> Classifier:
        """Load the classifier of a role, judge or perceptual. setting: its run; or auto: one trained on the same shards."""
        setting = self._recorded[role].run if role in self._recorded else setting
        info, task = self._info, "classifier" if self._info.num_classes > 1 else "rotation"
        missing = (
            f"No finished classifier with role={role} trained on {info.path} lies under {RUNS}/: train one (varlab train "
            f"task={task} role={role}{' seed=1' if role == 'perceptual' else ''} data=shards data.path={info.path} "
            "budget.images=100000), or name its directory."
        )
        run = self._search(setting, lambda r: r.build.get("role") == role and _same_images(r, self._info), missing)
        classifier, held_out = load_classifier(run), held_out_accuracy(run)
        if held_out.warning:
            logger.warning("%s: %s", run, held_out.warning)
        digest = sha256(run / "weights.safetensors")
        self.use(role, Parent(run=str(run), weights_sha256=digest, held_out=held_out.to_json()))
        return classifier

    def extractor(self, config: Config) -> Extractor:
        """Load the extractor of ``conf/extractor``: the Inception network, or the run's judge."""
        if config["kind"] == "inception":
            return InceptionExtractor(weights=config["weights"])
        classifier, info = self.classifier("judge", config["run"]), self._info
        judge = self.used["judge"]
        held_out = HeldOutAccuracy.from_json(judge.held_out)
        if held_out.predicts == "labels" and classifier.num_classes != info.num_classes:
            raise VarlabError(
                f"The judge {judge.run} knows {classifier.num_classes} classes, {info.path} has {info.num_classes}."
            )
        trained = (read_record(Path(judge.run)).data or {}).get("classes", [])
        if held_out.predicts == "labels" and permuted(trained, info.classes):
            raise VarlabError(
                f"The judge {judge.run} knows the classes of {info.path} in another order: train a judge on these shards."
            )
        return ClassifierExtractor(classifier=classifier, hash=judge.weights_sha256, held_out=held_out)

    def perceptual(self, config: Config | None) -> LPIPS | ClassifierPerceptual | None:
        """Load the perceptual distance of ``conf/perceptual``."""
        if config is None:
            return None
        values = {key: value for key, value in config.items() if key not in ("kind", "run")}
        if config["kind"] == "lpips":
            return LPIPS(**values)
        return ClassifierPerceptual(classifier=self.classifier("perceptual", config["run"]), **values)

    # -- tokenizers ----------------------------------------------------------------------------------------------------

    def tokenizer(self, setting: str, *, order: Config, scales: list[list[int]] | None = None) -> VQTokenizer:
        """Load a generator's tokenizer, frozen.

        setting: its run; or auto: of those trained on the same shards that fit the order, one with the fewest tokens.
        scales: others than it was trained with.
        """
        return self._carried("tokenizer", "tokenizer_run", setting, lambda: self._smallest_tokenizer(order), scales)

    def condition_tokenizer(self, setting: str) -> VQTokenizer:
        """Load a condition's tokenizer, frozen. setting: its run; or auto: one trained on the shards' conditions."""
        conditions = replace(self._info, view="condition")
        missing = (
            f"No finished tokenizer of the conditions of {self._info.path} lies under {RUNS}/: train one (varlab train "
            "task=tokenizer data.view=condition), or name its directory with condition.tokenizer_run=DIR."
        )
        return self._carried(
            "condition",
            "condition.tokenizer_run",
            setting,
            lambda: self._search("auto", lambda r: _is_tokenizer(r) and _same_images(r, conditions), missing),
        )

    def _carried(
        self, role: str, key: str, setting: str, search: Callable[[], Path], scales: list[list[int]] | None = None
    ) -> VQTokenizer:
        """A tokenizer from this run's copy of its weights, or from the parent's directory before there is a copy."""
        weights, parent = self._copy(role), self._recorded.get(role)
        if parent is None or not _holds(weights, parent):
            parent = _tokenizer_parent(key, Path(setting) if setting != "auto" else search(), scales)
            weights = Path(parent.file)
        self.used[role] = parent
        tokenizer = build_tokenizer(parent.config, Rng(0))
        load_weights(tokenizer, weights)
        return tokenizer.eval().requires_grad_(False)

    def copy_tokenizers(self) -> None:
        """Copy the tokenizers' weights into the run's directory, which then needs no other. For rank 0 only."""
        for role in ("tokenizer", "condition"):
            parent, copy = self.used.get(role), self._copy(role)
            if parent is not None and not _holds(copy, parent):
                with atomic_write(copy) as file:
                    file.write(Path(parent.file).read_bytes())

    def _copy(self, role: str) -> Path:
        return self._near / f"{role}.safetensors"

    # -- the search of auto --------------------------------------------------------------------------------------------

    def _search(self, setting: str, fits: Callable[[RunRecord], bool], missing: str) -> Path:
        """The run that a setting names; for auto the nearest finished training that fits, or VarlabError(missing)."""
        if setting != "auto":
            return Path(setting)
        for path, record in _finished_trainings(self._near):
            if fits(record):
                return path
        raise VarlabError(missing)

    def _smallest_tokenizer(self, order: Config) -> Path:
        fitting = [
            (positions, i, path)
            for i, (path, record) in enumerate(_finished_trainings(self._near))
            if _is_tokenizer(record) and _same_images(record, self._info)
            if (positions := _positions(order, record)) is not None
        ]
        if not fitting:
            raise VarlabError(
                f"No finished tokenizer trained on {self._info.path} under {RUNS}/ fits the order {order['_target_']}: "
                "train one (varlab train task=tokenizer tokenizer=multi or single), or name its directory with "
                "tokenizer_run=DIR."
            )
        path = min(fitting)[2]
        logger.info("tokenizer_run=auto took %s", path)
        return path


def load_classifier(run: Path) -> Classifier:
    """Load the classifier of a finished run."""
    build = read_finished(run).build
    if "classifier" not in build:
        raise VarlabError(f"{run} is not the run of a classifier (varlab train task=classifier).")
    with Rng(0).scope("init/classifier"):
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


def _finished_trainings(near: Path) -> Iterator[tuple[Path, RunRecord]]:
    """Finished trainings under runs/ and beside a directory: those with most folders in common first, then the newest."""
    roots = [root for root in (RUNS, near.parent) if root.is_dir() and root.resolve() != Path.cwd()]
    files = {file.resolve() for root in roots for file in root.rglob("run.json")}

    def common(file: Path) -> int:
        return len(Path(os.path.commonpath([file.parent, near.resolve()])).parts)

    for file in sorted(files, key=lambda f: (-common(f), -f.stat().st_mtime)):
        try:
            record = read_record(file.parent)
        except VarlabError as error:
            logger.warning("%s", error)
            continue
        if record.command == "train" and record.outcome.finished:
            yield Path(os.path.relpath(file.parent)), record


def _is_tokenizer(record: RunRecord) -> bool:
    return bool(record.config.get("kind") == "tokenizer")


def _same_images(record: RunRecord, info: DataInfo) -> bool:
    """Whether a run was trained on the same images of the same shards."""
    view = (record.config.get("data") or {}).get("view", "image")
    return (record.data or {}).get("hash") == info.hash and view == info.view


def _positions(order: Config, record: RunRecord) -> int | None:
    """Tokens of an image in this order, by a run's tokenizer; None if the two don't fit."""
    try:
        return build_order(order, build_tokenizer(record.build["tokenizer"], Rng(0))).num_positions
    except VarlabError:
        return None


def _tokenizer_parent(key: str, run: Path, scales: list[list[int]] | None) -> Parent:
    """What run.json stores of a tokenizer. scales: others than it was trained with: its networks fit any resolution."""
    record, inside = read_finished(run), run / "tokenizer.safetensors"
    if "tokenizer" not in record.build:
        raise VarlabError(f"{key}={run} is not the run of a tokenizer (varlab train task=tokenizer).")
    file = inside if inside.is_file() else run / "weights.safetensors"  # a generator's run carries its tokenizer
    return Parent(
        run=str(run),
        file=str(file),
        weights_sha256=sha256(file),
        config=record.build["tokenizer"] | ({"scales": scales} if scales else {}),
        flops=record.outcome.flops,
        images=record.outcome.images,
    )


def _holds(copy: Path, parent: Parent) -> bool:
    """Whether a file holds the parent's weights, not those of an earlier attempt with another parent."""
    return copy.exists() and sha256(copy) == parent.weights_sha256
