"""Find and load the parents of a run: its tokenizer, its condition's tokenizer, its judge and its perceptual network."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from varlab.checkpoint import load_weights
from varlab.config import Config
from varlab.files import atomic_write, sha256
from varlab.losses.perceptual import PerceptualDistance
from varlab.metrics.classifier import Classifier
from varlab.metrics.extractors import Extractor
from varlab.order import BaseOrder
from varlab.recipe.assembly import build_tokenizer
from varlab.recipe.networks import held_out_accuracy, load_classifier
from varlab.recipe.objects import make, make_part
from varlab.recipe.preflight.named_runs import read_tokenizer
from varlab.recipe.preflight.size_fit import are_scales
from varlab.recipe.run_search import RUNS, nearest_classifier, nearest_run, no_tokenizer, same_images, tokenizers_of
from varlab.rng import Rng
from varlab.run.directory import RunDirectory
from varlab.run.record import FILE, Parent, RunRecord
from varlab.run.trust import Trust, described_by
from varlab.tokenizer import VQTokenizer
from varlab.types import DataInfo, VarlabError

logger = logging.getLogger(__name__)


class Parents:
    """The parents of one run. ``used`` collects what run.json stores of them, by role.

    info: the data that the run works on. near: the run's directory; the setting ``auto`` takes the nearest run that fits.
    recorded: the parents of the run's earlier attempts. A resumed run takes the same ones and refuses changed weights.
    trust: what the records of the parents may build.
    """

    def __init__(
        self,
        *,
        info: DataInfo,
        near: Path,
        trust: Trust | None = None,
        recorded: Mapping[str, Parent] | None = None,
    ):
        self.info, self._near, self._recorded = info, near, recorded or {}
        self.trust = trust or Trust()
        self.used: dict[str, Parent] = {}

    @classmethod
    def of(cls, directory: RunDirectory, info: DataInfo, trust: Trust) -> Parents:
        """Return the parents of a training, which may be resumed."""
        return cls(info=info, near=directory.path, trust=trust, recorded=directory.record().parents)

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
        setting = self._recorded[role].run if role in self._recorded and setting == "auto" else setting
        run = nearest_classifier(self._near, role, self.info) if setting == "auto" else Path(setting)
        classifier, held_out = load_classifier(run, self.trust), held_out_accuracy(run)
        if held_out.warning:
            logger.warning("%s: %s", run, held_out.warning)
        digest = sha256(run / "weights.safetensors")
        self.use(role, Parent(run=str(run), weights_sha256=digest, held_out=held_out.to_json()))
        return classifier

    def extractor(self, config: Config) -> Extractor:
        """Make the extractor of ``conf/extractor``."""
        extractor: Extractor = make_part("extractor", config, parents=self)
        return extractor

    def perceptual(self, config: Config | None) -> PerceptualDistance | None:
        """Make the perceptual distance of ``conf/perceptual``."""
        return None if config is None else make_part("perceptual", config, parents=self)

    # -- tokenizers ----------------------------------------------------------------------------------------------------

    def tokenizer(self, setting: str, *, order: Config, scales: list[list[int]] | None = None) -> VQTokenizer:
        """Load a generator's tokenizer, frozen.

        setting: its run; or auto: of those trained on the same shards that fit the order, one with the fewest tokens.
        scales: others than it was trained with.
        """
        return self._carried(
            "tokenizer", "tokenizer_run", setting, lambda: _smallest_tokenizer(self._near, self.info, order), scales
        )

    def condition_tokenizer(self, setting: str) -> VQTokenizer:
        """Load a condition's tokenizer, frozen. setting: its run; or auto: one trained on the shards' conditions."""
        conditions = replace(self.info, view="condition")
        missing = (
            f"No finished tokenizer of the conditions of {self.info.path} lies under {RUNS}/: train one (varlab train "
            "task=tokenizer data.view=condition), or name its directory with condition.tokenizer_run=DIR."
        )
        return self._carried(
            "condition",
            "condition.tokenizer_run",
            setting,
            lambda: nearest_run(self._near, lambda r: r.holds == "tokenizer" and same_images(r, conditions), missing),
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
        with described_by(file := Path(parent.run) / FILE, "tokenizer that can be built"):
            self.trust.check(parent.config, file)
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


def _tokenizer_parent(key: str, run: Path, scales: list[list[int]] | None) -> Parent:
    """What run.json stores of a tokenizer. scales: others than it was trained with: its networks fit any resolution."""
    record, inside = read_tokenizer(key, run), run / "tokenizer.safetensors"
    file = inside if inside.is_file() else run / "weights.safetensors"  # a generator's run carries its tokenizer
    return Parent(
        run=str(run),
        file=str(file),
        weights_sha256=sha256(file),
        config=record.build["tokenizer"] | ({"scales": scales} if scales else {}),
        flops=record.outcome.flops,
        images=record.outcome.images,
    )


def _smallest_tokenizer(near: Path, info: DataInfo, order: Config) -> Path:
    """Of the tokenizers trained on these images that fit the order, the one with the fewest tokens."""
    fitting, unfit = [], ""
    for i, (path, record) in enumerate(tokenizers_of(near, info)):
        try:
            fitting.append((_positions(order, record), i, path))
        except VarlabError as error:
            unfit = f" {path} does not fit: {error}"
    if not fitting:
        raise no_tokenizer(info, order["_target_"], unfit)
    path = min(fitting)[2]
    logger.info("tokenizer_run=auto took %s", path)
    return path


def _positions(order: Config, record: RunRecord) -> int:
    """Tokens of an image in this order, over the scales that a run's record names. Raises VarlabError if they don't fit."""
    scales = record.build.get("scales") or record.build["tokenizer"].get("scales")
    if not are_scales(scales):
        raise VarlabError("its record does not name the scales of its tokenizer")
    made: BaseOrder = make(order, scales=tuple((h, w) for h, w in scales))
    return made.num_positions


def _holds(copy: Path, parent: Parent) -> bool:
    """Whether a file holds the parent's weights, not those of an earlier attempt with another parent."""
    return copy.exists() and sha256(copy) == parent.weights_sha256
