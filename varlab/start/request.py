"""What can be known of a start before its first step: whether its folder and its numbers make sense."""

from __future__ import annotations

import math

from varlab.config import Config, conf_dir
from varlab.data.folders.tree import Tree
from varlab.data.pack.sources.source_paths import image_folder
from varlab.errors import VarlabError
from varlab.launch.user_message import one_of
from varlab.recipe.preflight.fitted_settings import fitted_tokenizer
from varlab.run.directory import RunDirectory

__all__ = ["FEWEST", "check"]

FEWEST = 20  # pictures
_WHOLE = 16  # pixels: a multiple has whole tokens at any size


def check(config: Config, directory: RunDirectory) -> None:
    """Raise VarlabError for a folder that is not there or holds too little, for no time, and for a size or an order that
    cannot be.
    """
    folder = image_folder(str(config["folder"]))
    _require_minutes(config["minutes"], config["limits"]["minutes"])
    _require_size(config["size"], *config["limits"]["size"])
    orders = config["orders"]
    known = {file.stem for file in (conf_dir() / "order").glob("*.yaml")}
    if not isinstance(orders, list) or not orders or len({*orders}) < len(orders):
        raise VarlabError(f"orders={orders} must name each order once, as orders=[next_scale,raster] does.")
    for order in orders:
        if order not in known:
            raise VarlabError(f"There is no order '{order}': {one_of(str(order), known)}")
    if (count := len(Tree(folder).pictures())) < FEWEST:
        few = f"{count or 'no'} picture{'' if count == 1 else 's'}"
        raise VarlabError(f"{folder} holds {few}: give a folder with at least {FEWEST}.")


def _require_minutes(minutes: object, least: float) -> None:
    if isinstance(minutes, bool) or not isinstance(minutes, int | float) or not least <= minutes < math.inf:
        raise VarlabError(
            f"minutes={minutes} must be a number of at least {least:g}, as packing, measuring and scoring alone take some "
            "minutes: use minutes=30."
        )


def _require_size(size: object, least: int, most: int) -> None:
    if isinstance(size, bool) or not isinstance(size, int):
        raise VarlabError(f"size={size} must be a whole number of pixels, as size=32 is.")
    nearest = min(max(round(size / _WHOLE) * _WHOLE, least), most)
    if not least <= size <= most:
        raise VarlabError(f"size={size} is outside {least} to {most} pixels: use size={nearest}.")
    try:
        fitted_tokenizer({"channel_mult": "auto", "scales": "doubling"}, (size, size))
    except VarlabError as error:
        raise VarlabError(
            f"Pictures of {size}×{size} pixels have no whole number of tokens: use size={nearest}."
        ) from error
