"""What can be known of a command that reads images or foreign checkpoints before it opens them."""

from __future__ import annotations

from pathlib import Path

from varlab.config import Config
from varlab.data.pack.sources.source_paths import image_folder, parquet_paths, require_other_folder, shard_folder
from varlab.errors import VarlabError
from varlab.files import require_file, require_writable
from varlab.recipe.preflight.command_numbers import require_numbers
from varlab.recipe.preflight.data_facts import data_info
from varlab.renames import current_name
from varlab.run.directory import RunDirectory

_PLACES = {
    "varlab.data.pack.sources.folder.ImageFolder": image_folder,
    "varlab.data.pack.sources.tars.Tars": shard_folder,
    "varlab.data.pack.sources.parquet.Parquet": parquet_paths,
}


def check_pack(config: Config, directory: RunDirectory) -> None:
    """Raise VarlabError if there is nothing at the source's path, or the shards would replace their source."""
    source = config["source"]
    place = _PLACES.get(current_name(str(source.get("_target_"))))
    if place is not None:
        place(source["path"])
        require_other_folder(source["path"], directory.path)


def check_index(config: Config, directory: RunDirectory) -> None:
    """Raise VarlabError unless the folder of the shards is there, and the index or the report can be written."""
    folder = Path(config["path"]).expanduser()
    if not folder.is_dir():
        raise VarlabError(f"There is no folder {folder}: give the folder of the shards.")
    if config["check"]:
        require_writable(directory.path, "give another folder for the report with out=DIR")
    else:
        place = folder if config["out"] is None else directory.path
        require_writable(place, "make it writable, or put the index elsewhere with out=DIR")


def check_bench(config: Config, directory: RunDirectory) -> None:
    """Raise VarlabError for numbers that make no sense, or without images: what=data reads shards, others noise in memory."""
    require_numbers(config)
    if not config["seconds"] >= 0:
        raise VarlabError(f"seconds={config['seconds']} is a time: give 0 (one turn a round) or more.")
    if config["what"] == "data":
        data_info(config["data"])


def check_import(config: Config, directory: RunDirectory) -> None:
    """Raise VarlabError unless the checkpoints and the names of classes are there."""
    files = [Path(file) for file in config["files"].values() if file is not None]
    if not files:
        raise no_tokenizer_file()
    for file in files:
        require_file(file, "checkpoint")
    classes = config["classes"]
    if isinstance(classes, str) and not Path(classes).exists():
        raise VarlabError(f"classes={classes} is neither a folder of shards nor a file of names: correct its path.")


def no_tokenizer_file() -> VarlabError:
    """Return the error about an import without a tokenizer."""
    return VarlabError("Give the tokenizer's checkpoint: tokenizer=FILE (a transformer alone makes no images).")
