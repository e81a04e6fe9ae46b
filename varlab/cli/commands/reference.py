"""``varlab reference``: the file that samples are compared with, as the ADM suite's, from the images of shards."""

from __future__ import annotations

import logging

from varlab.cli.progress_bar import progress_bar
from varlab.config import Config
from varlab.data import ShardDataModule
from varlab.files import sha256
from varlab.json_file import write_sealed_json
from varlab.recipe.finished_run import device_of
from varlab.recipe.objects import make
from varlab.recipe.sample_file.set_evaluation import set_extractor
from varlab.run.directory import RunDirectory
from varlab.score.image_set import FollowedImages, ShardImages
from varlab.score.reference_writer import write_reference

__all__ = ["run"]

logger = logging.getLogger(__name__)


def run(config: Config, directory: RunDirectory) -> Config:
    """Write reference.npz: mu, sigma (and mu_s, sigma_s) of every image's features, and arr_0, some of the images."""
    data: ShardDataModule = make(config["data"])
    images = ShardImages(data, config["split"])
    extractor = set_extractor(config, data, directory.path).to(device_of(config["device"]))
    path = directory.path / "reference.npz"
    with progress_bar("features") as progress:
        followed = FollowedImages(images, "features", progress)
        how = {"kept": config["images"], "seed": config["seed"], "batch": config["batch"]}
        kept = write_reference(path, images=followed, extractor=extractor, **how)
    said = {
        "extractor": extractor.name,
        "extractor_hash": extractor.hash,
        "resize": extractor.resize,
        "data": images.name,
        "data_hash": images.hash,
        "n": images.n,
        "images": kept,
        "image_size": list(images.image_size),
        "seed": config["seed"],
    }
    write_sealed_json(path.with_suffix(".json"), {"file_sha256": sha256(path)} | said)
    logger.info("moments of %d images and %d of the images: %s", images.n, kept, path)
    return said
