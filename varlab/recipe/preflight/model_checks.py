"""What can be known of a command that reads a run (sample, evaluate, edit, encode, export) before its model is built."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

from varlab.config import Config
from varlab.data.image.depth import read_depths
from varlab.data.image.picture import PixelRules, read_named_picture
from varlab.errors import VarlabError
from varlab.info import DataInfo
from varlab.recipe.preflight.command_numbers import require_numbers
from varlab.recipe.preflight.data_facts import data_info, require_val_to_score
from varlab.recipe.preflight.named_runs import (
    require_generator,
    require_image_size,
    require_model,
    require_network,
    require_same_classes,
    require_weights,
)
from varlab.run.directory import RunDirectory
from varlab.run.record import FILE, RunRecord, read_finished, read_record
from varlab.run.trust import Trust, described_by

_TASKS = ("inpaint", "outpaint", "class")


def check_encode(config: Config, directory: RunDirectory) -> None:
    """Raise VarlabError for an encoding that cannot begin."""
    record = _finished(config)
    _data(config, record)


def check_evaluate(config: Config, directory: RunDirectory) -> None:
    """Raise VarlabError for scores that cannot be computed."""
    if (config["run"] is None) == (config["samples"] is None):
        raise VarlabError(
            "Name one thing to score, the directory of a run or samples=FILE.npz (or a folder of pictures)."
        )
    if config["samples"] is not None:
        _check_samples(config)
        return
    record, run = _finished(config), Path(config["run"])
    if (info := _data(config, record)) is None:
        return
    require_val_to_score(info)
    require_network(config["extractor"], info, run)
    if isinstance(classes := record.build.get("classes"), list):
        require_same_classes(classes, info)


def _check_samples(config: Config) -> None:
    require_numbers(config)
    if config["reference"] is None and not config.get("data"):
        raise VarlabError(
            "The samples have nothing to be compared with (reference=FILE.npz or a folder, or data=shards)."
        )
    for key in ("samples", "reference"):
        if config[key] is not None and not Path(config[key]).exists():
            raise VarlabError(f"{key}={config[key]} does not exist: correct its path.")


def check_reference(config: Config, directory: RunDirectory) -> None:
    """Raise VarlabError for images that are not there, and numbers that make no sense."""
    require_numbers(config)
    if not isinstance(config["images"], int) or config["images"] < 0:
        raise VarlabError(f"images={config['images']} must be a whole number; 0 for moments alone.")
    if (info := data_info(config["data"])) is not None:
        require_network(config["extractor"], info, directory.path)


def check_sample(config: Config, directory: RunDirectory) -> None:
    """Raise VarlabError unless the run is a finished generator, and the kind of file is known."""
    trainer = config["trainer"]
    if config["kind"] not in ("pictures", "npz"):
        raise VarlabError(f"format={config['kind']} is unknown: use pictures or npz.")
    if config["kind"] == "pictures" and (trainer["devices"], trainer["num_nodes"]) != (1, 1):
        raise VarlabError(
            "Pictures are made by one process: give format=npz for several, or leave trainer.devices out."
        )
    require_generator(Path(config["run"]), _finished(config))


def check_edit(config: Config, directory: RunDirectory) -> None:
    """Raise VarlabError unless the run is a finished generator, and it is clear what to paint in a picture that opens."""
    if config["kind"] not in _TASKS:
        raise VarlabError(f"task={config['kind']} is unknown: use {', '.join(_TASKS)}.")
    require_generator(Path(config["run"]), _finished(config))
    if (config["mask"] is None) == (config["box"] is None):
        raise VarlabError("Give what to paint: one of mask=FILE (white is painted) and box=[top,left,bottom,right].")
    for setting in ("image", "mask", "cond"):
        if config[setting] is not None:
            read_named_picture(Path(config[setting]), picture_rules(config), setting)


def picture_rules(config: Config, *, background: int = 255) -> PixelRules:
    """Return how the pictures that a command names become pixels. background: the grey under transparent parts."""
    depths = read_depths(config["depth"], auto={})
    return PixelRules(most_pixels=config["most_pixels"], depths=depths, background=background)


def check_export(config: Config, directory: RunDirectory) -> None:
    """Raise VarlabError unless the run holds a model, and the kind of file is known."""
    if config["file"] not in ("pth", "safetensors"):
        raise VarlabError(f"file={config['file']} is unknown: use pth or safetensors.")
    require_weights(config["weights"], Path(config["run"]))
    require_model(Path(config["run"]), read_record(Path(config["run"])))


def _finished(config: Config) -> RunRecord:
    """The record of the run that a command reads."""
    require_numbers(config)
    record = read_finished(Path(config["run"]))
    require_weights(config["weights"], Path(config["run"]))
    require_model(Path(config["run"]), record)
    return record


def _data(config: Config, record: RunRecord) -> DataInfo | None:
    """The images that a command names, or else those that the run was trained on; None where they are not known."""
    given = config.get("data")
    asked, file = given or record.config.get("data"), Path(config["run"]) / FILE
    if not isinstance(asked, dict):
        return None
    if not given:
        Trust.of(config.get("trust")).check(asked, file)
    with nullcontext() if given else described_by(file, "images that can be read"):
        info = data_info(asked)
    if info is not None:
        require_image_size(record, info)
    return info
