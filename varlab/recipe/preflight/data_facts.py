"""What the images of a configuration are, by their index, and whether a command can use them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from varlab.config import Config
from varlab.data.format.index import Index, read_index
from varlab.data.limits import image_size, require_at_least
from varlab.data.storage.local_folder import LocalFolder
from varlab.data.tokens import read_tokens
from varlab.errors import VarlabError
from varlab.info import DataInfo
from varlab.renames import current_name

logger = logging.getLogger(__name__)


def data_info(config: Config) -> DataInfo | None:
    """Return what the index of a configuration of ``conf/data`` says; None where it lies behind a URL or has another form.

    Raises VarlabError as the data module would: a setting is out of range, or the shards or tokens are not there.
    """
    read = _READERS.get(current_name(str(config.get("_target_"))))
    if read is None:
        return None
    numbers = {least: {key: config[key] for key in keys if key in config} for least, keys in _LEAST.items()}
    for least, values in numbers.items():
        require_at_least(least, **values)
    return read(config)


_LEAST = {1: ("batch", "eval_batch", "most_pixels"), 0: ("workers", "views", "cache_bytes")}


def _shards_or_tokens(config: Config) -> DataInfo | None:
    images = _shards(config)
    return images if config.get("tokens") is None else _tokens({"path": config["tokens"]}, images)


def _shards(config: Config) -> DataInfo | None:
    path, shards = str(config["path"]), config.get("shards")
    if "://" in path or "://" in str(shards):
        return None
    index = read_index(path, shards=None if shards is None else LocalFolder(Path(shards)))
    return _info_of(index, config)


def _info_of(index: Index, config: Config) -> DataInfo:
    size, view = config.get("size"), str(config.get("view", "image"))
    cut = None if size is None else image_size(size)
    index.require_size(cut)
    index.require_view(view)
    return replace(index.info, view=view, image_size=cut or index.info.image_size)


def _token_set(config: Config) -> DataInfo | None:
    asked = config.get("images")
    return _tokens(config, None if asked is None else data_info(asked))


def _tokens(config: Config, images: DataInfo | None) -> DataInfo | None:
    """The images that were encoded, with the hash of their tokens."""
    tokens = read_tokens(str(config["path"]))
    if images is None and isinstance(tokens.images.get("path"), str):
        images = _shards(dict(tokens.images))
    if images is None:
        return None
    tokens.require_same_images(images.path, images.hash)
    return replace(images, tokens=tokens.hash)


_READERS: Mapping[str, Callable[[Config], DataInfo | None]] = {
    "varlab.data.token_module.shards_or_tokens": _shards_or_tokens,
    "varlab.data.token_module.TokenDataModule": _token_set,
    "varlab.data.TokenDataModule": _token_set,
    "varlab.data.shard_module.ShardDataModule": _shards,
    "varlab.data.ShardDataModule": _shards,
}


def require_val(config: Config, info: DataInfo) -> None:
    """Raise VarlabError if there is nothing to validate with, but a validation is to come."""
    if not info.counts.get("val") and not config["val"].get("skip"):
        raise VarlabError(
            f"{info.path} holds no val images to validate with: add val.skip=true, which trains the same without it, or "
            "hold some images out first (varlab index with val_fraction=0.05, or a val folder for varlab pack)."
        )


def require_val_for_scores(info: DataInfo) -> None:
    """Raise VarlabError if there is nothing to reconstruct for the scores of a tokenizer in training."""
    if not info.counts.get("val"):
        raise VarlabError(f"{info.path} holds no val images to reconstruct for scores: set scores.every=null.")


def require_val_to_score(info: DataInfo) -> None:
    """Raise VarlabError if there are no held-out images with which a run could be scored."""
    if not info.counts.get("val"):
        raise VarlabError(
            f"{info.path} holds no val images, with which scores compare: give data=shards data.path=DIR of some."
        )


def note_leakage(path: str, leakage: str) -> str:
    """Warn again, after the packing, of val images that are train images, too; returns the sentence for the record."""
    if leakage:
        logger.warning("%s: %s, so that scores on val are too good", path, leakage, extra={"detail": True})
    return leakage


def require_train(info: DataInfo, batch: int) -> None:
    """Raise VarlabError if there is nothing to train on; warn if a batch holds an image more than once."""
    count = info.counts.get("train", 0)
    if not count:
        raise VarlabError(f"The shard set {info.path} holds no train images: pack one that does.")
    if batch > count:
        logger.warning(
            "%s holds %d train images, fewer than data.batch=%d: a batch holds some more than once",
            info.path,
            count,
            batch,
        )


def require_several_classes(info: DataInfo, distinct: int) -> None:
    """Raise VarlabError if all training images have the same label. distinct: how many labels they have."""
    if distinct < 2:
        raise VarlabError(
            f"All training images of {info.path} are of one class, from which a classifier learns nothing: train the network "
            "that predicts rotation (the same command with task=rotation), or use extractor=inception for scores and "
            "perceptual=lpips for the tokenizer, which need none."
        )
