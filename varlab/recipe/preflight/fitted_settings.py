"""Settings that a configuration leaves to the data, as ``tokenizer.scales=doubling`` does (``conf/fit.yaml``)."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from omegaconf import OmegaConf

from varlab.config import Config, conf_dir
from varlab.errors import VarlabError
from varlab.info import DataInfo
from varlab.recipe.preflight.data_facts import data_info

logger = logging.getLogger(__name__)

_FITTED_SCALES = ("doubling", "one")


def complete(config: Config) -> Config:
    """Replace the words in ``tokenizer.scales``, ``tokenizer.channel_mult`` and ``data.batch`` by values, and log these.

    They depend on the data alone, never on the machine. Raises VarlabError where the data do not say enough.
    """
    asks_tokenizer = config.get("kind") == "tokenizer" and not config.get("init") and _is_open(config.get("tokenizer"))
    asks_batch = isinstance(config.get("data"), dict) and config["data"].get("batch") == "auto"
    if not asks_tokenizer and not asks_batch:
        return config
    data: Config = config["data"]
    info = data_info({**data, "batch": 1} if asks_batch else data)
    if asks_batch:
        data = {**data, "batch": fitted_batch(_known(info, "data.batch=64").counts.get("train", 0))}
        if "budget" in config:  # other commands make no batches of training
            logger.info("data.batch=%d, which fits the number of images", data["batch"])
    config = {**config, "data": data}
    if asks_tokenizer:
        tokenizer = fitted_tokenizer(config["tokenizer"], _image_size(info, data))
        fitted = [key for key in ("scales", "channel_mult") if tokenizer[key] != config["tokenizer"][key]]
        words = " ".join(f"tokenizer.{key}={_word(tokenizer[key])}" for key in fitted)
        logger.info("%s, which fit%s the images", words, "s" if len(fitted) == 1 else "")
        config["tokenizer"] = tokenizer
    return config


def fitted_batch(images: int) -> int:
    """The batch for so many training images: a power of two."""
    rule = _rules()["batch"]
    fitting = max(1, images // rule["updates_per_epoch"])
    return min(max(1 << (fitting.bit_length() - 1), rule["least"]), rule["most"])


def fitted_tokenizer(tokenizer: Config, image_size: Sequence[int]) -> Config:
    """A tokenizer's configuration for images of (H, W).

    ``channel_mult: auto`` becomes a list. ``scales: one`` becomes the map of the encoder, and ``scales: doubling`` all maps up
    to it, from one token on. Raises VarlabError if no number of tokens covers the images.
    """
    stages, scales = tokenizer.get("channel_mult", [1]), tokenizer.get("scales")
    if stages == "auto":
        stages = next(line["stages"] for line in _rules()["channel_mult"] if max(image_size) <= line["pixels"])
    if scales in _FITTED_SCALES:
        scales = fitted_scales(image_size, 2 ** (len(stages) - 1), several=scales == "doubling")
    return tokenizer | ({"channel_mult": stages, "scales": scales} if _is_open(tokenizer) else {})


def fitted_scales(image_size: Sequence[int], downsample: int, *, several: bool) -> list[list[int]]:
    """The token maps (h, w) of images of (H, W): one, or from 1 × 1 on each with about twice the tokens of the one before.

    Raises VarlabError if a token does not cover whole pixels.
    """
    height, width = image_size
    if height % downsample or width % downsample:
        nearest = [max(1, round(side / downsample)) * downsample for side in image_size]
        raise VarlabError(
            f"Images of {height}×{width} pixels have no whole number of tokens of {downsample}×{downsample} pixels: use "
            f"data.size=[{nearest[0]},{nearest[1]}]."
        )
    scales = [[height // downsample, width // downsample]]
    while several and scales[0] != [1, 1]:
        h, w = scales[0]
        scales.insert(0, [(h + 1) // 2, w] if h >= w else [h, (w + 1) // 2])
    return scales


def _is_open(tokenizer: object) -> bool:
    """Whether a tokenizer's configuration leaves its sizes to the data."""
    return isinstance(tokenizer, dict) and (
        tokenizer.get("channel_mult") == "auto" or tokenizer.get("scales") in _FITTED_SCALES
    )


def _known(info: DataInfo | None, keys: str) -> DataInfo:
    if info is None:
        raise VarlabError(f"This form of data does not say its sizes before it is read: give {keys}.")
    return info


def _image_size(info: DataInfo | None, data: Config) -> Sequence[int]:
    """(H, W): of the shards, or what data without an index are resized to."""
    size = data.get("size")
    if info is None and size is not None:
        return [size, size] if isinstance(size, int) else list(size)
    return _known(info, "tokenizer.scales and tokenizer.channel_mult").image_size


def _word(value: object) -> str:
    return str(value).replace(" ", "")


def _rules() -> Config:
    rules: Config = OmegaConf.to_container(OmegaConf.load(conf_dir() / "fit.yaml"))  # type: ignore[assignment]
    return rules
