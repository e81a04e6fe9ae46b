"""The runs that a configuration names: whether they exist, are finished, and hold what is asked of them."""

from __future__ import annotations

import logging
from pathlib import Path

from varlab.config import Config
from varlab.data.folders.class_names import canonical, misplaced
from varlab.errors import VarlabError
from varlab.info import DataInfo
from varlab.recipe.run_search import nearest_classifier
from varlab.renames import current_name
from varlab.run.record import RunRecord, read_finished, read_record

logger = logging.getLogger(__name__)

_NETWORKS = {"varlab.recipe.networks.classifier_distance": "perceptual", "varlab.recipe.networks.judge": "judge"}
WEIGHTS = {"ema": "weights.safetensors", "raw": "weights_raw.safetensors", "best": "weights_best.safetensors"}


def read_tokenizer(key: str, run: Path) -> RunRecord:
    """Return the record of a finished run with a tokenizer. key: the one that names the run."""
    record = read_finished(run)
    if "tokenizer" not in record.build:
        raise VarlabError(f"{key}={run} is not the run of a tokenizer (varlab train task=tokenizer).")
    return record


def read_classifier(run: Path) -> RunRecord:
    """Return the record of a finished classifier."""
    record = read_finished(run)
    if "classifier" not in record.build:
        raise VarlabError(f"{run} is not the run of a classifier (varlab train task=classifier).")
    return record


def read_init(run: Path, kind: str) -> RunRecord:
    """Return the record of the finished run that ``init`` names. kind: tokenizer or generator."""
    record = read_record(run)
    if record.holds != kind:
        raise VarlabError(
            f"init={run} is the run of a {record.holds or record.command}: a {kind} cannot start from it."
        )
    if not record.outcome.finished:
        raise VarlabError(f"init={run} is {record.outcome.state}, not finished: run its command again to finish it.")
    return record


def is_judge(extractor: Config | None) -> bool:
    """Whether an extractor is a trained classifier of the data."""
    return _NETWORKS.get(current_name(str((extractor or {}).get("_target_")))) == "judge"


def require_network(config: Config | None, info: DataInfo, near: Path) -> None:
    """Raise VarlabError if the classifier of an extractor or a perceptual distance is not there."""
    role = _NETWORKS.get(str((config or {}).get("_target_")))
    if config is None or role is None:
        return
    if config["run"] == "auto":
        nearest_classifier(near, role, info, warn=logger.debug)
    else:
        read_classifier(Path(config["run"]))


def require_classes_of(run: Path, record: RunRecord, info: DataInfo) -> None:
    """Raise VarlabError if the generator that ``init`` names knows another number of classes than the data has."""
    classes = record.build.get("classes")
    if isinstance(classes, list) and len(classes) != info.num_classes:
        raise VarlabError(
            f"init={run} knows {len(classes)} classes, but {info.path} has {info.num_classes}: give images of its classes, "
            f"or train a new generator on its tokenizer (init=null tokenizer_run={run})."
        )


def require_model(run: Path, record: RunRecord) -> None:
    """Raise VarlabError unless a run holds a tokenizer or a generator."""
    if "tokenizer" not in record.build:
        raise VarlabError(f"{run} is a run of '{record.command} {record.name}', which holds no image model.")


def require_generator(run: Path, record: RunRecord) -> None:
    """Raise VarlabError unless a run holds a generator."""
    if record.build.get("transformer") is None:
        raise VarlabError(f"{run} is not the run of a generator: there is nothing to sample from.")


def require_weights(weights: object, run: Path) -> None:
    """Raise VarlabError for an unknown value of ``weights``, and for the best ones of a run that kept none."""
    if weights not in WEIGHTS:
        raise VarlabError(f"weights={weights!r} is unknown: use 'ema', 'raw' or 'best'.")
    if weights == "best" and not (run / WEIGHTS["best"]).is_file():
        raise VarlabError(
            f"{run} kept no best weights, as a training with checkpoint.best=nll (or another score) does: use weights=ema."
        )


def require_image_size(record: RunRecord, info: DataInfo) -> None:
    """Raise VarlabError unless the data have images of the size that a run works on."""
    wanted, has = tuple(record.build["image_size"]), info.image_size
    if wanted != has:
        size = str(wanted[0] if wanted[0] == wanted[1] else list(wanted)).replace(" ", "")
        raise VarlabError(
            f"The run works on {wanted[0]}×{wanted[1]} images, {info.path} holds {has[0]}×{has[1]}: cut them to that size "
            f"with data=shards data.path={info.path} data.size={size}."
        )


def require_same_classes(knows: list[str], info: DataInfo) -> None:
    """Raise VarlabError if the run's labels mean other classes than the data's.

    A run that knows numbers alone, as most imported ones, fits any names, but no other numbers than its own.
    """
    has, path = list(info.classes), info.path
    if list(map(canonical, knows)) == list(map(canonical, has)):
        return
    if knows != [str(i) for i in range(len(has))]:
        raise VarlabError(f"The run knows the classes {knows}, but {path} holds {has}.")
    if (wrong := misplaced(knows, has)) is not None:
        raise VarlabError(
            f"The run knows its classes by number, but class {has.index(wrong)} of {path} is called {wrong}: labels would be "
            "permuted. Pack the images again (folders named by number then stand in numeric order), or, if the run's labels "
            f"do follow the order of {path}, import it with classes={path}."
        )
