"""Whether images have the size that a tokenizer is made for, and which sizes would fit."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeGuard

from varlab.config import Config
from varlab.errors import VarlabError
from varlab.renames import current_name

_LARGEST = 1024  # tokens along a side; a record with more is a mistake
_TOKENIZERS = ("varlab.tokenizer.VQTokenizer", "varlab.tokenizer.model.VQTokenizer")


def require_fitting_size(
    scales: Sequence[Sequence[int]], downsample: int, *, image_size: Sequence[int], where: str, key: str
) -> None:
    """Raise VarlabError, with sizes that fit, unless a tokenizer's last scale covers images of this (H, W).

    where: the data. key: the one that sets the scales; empty where none does.
    """
    (h, w), (height, width) = scales[-1], image_size
    if (h * downsample, w * downsample) == (height, width):
        return
    own = h * downsample if h == w else f"[{h * downsample},{w * downsample}]"
    remedies = [f"data.size={own}"]
    if key and height % downsample == width % downsample == 0 and min(height, width) > 0:
        fitting = str(_scales_up_to(scales, (height // downsample, width // downsample))).replace(" ", "")
        remedies.insert(0, f"{key}={fitting}")
    raise VarlabError(
        f"The tokenizer's last scale {(h, w)} times {downsample} is {h * downsample}×{w * downsample} pixels, but {where} "
        f"holds {height}×{width}: use {' or '.join(remedies)}."
    )


def _scales_up_to(scales: Sequence[Sequence[int]], last: tuple[int, int]) -> list[list[int]]:
    """The scales that are smaller than the last one, and that one; a single scale stays a single one."""
    smaller = [list(scale) for scale in scales if scale[0] <= last[0] and scale[1] <= last[1] and tuple(scale) != last]
    return [*(smaller if len(scales) > 1 else []), list(last)]


def tokenizer_grid(config: object) -> tuple[list[list[int]], int] | None:
    """Return (scales, downsample) of a tokenizer's configuration; None where only its class knows them."""
    if not isinstance(config, dict) or current_name(str(config.get("_target_"))) not in _TOKENIZERS:
        return None
    quantizer: Config = config.get("quantizer") or {}
    scales = config.get("scales") or (quantizer.get("scales") if isinstance(quantizer, dict) else None)
    stages = config.get("channel_mult")
    if not are_scales(scales) or not isinstance(stages, list) or not stages:
        return None
    return scales, 2 ** (len(stages) - 1)


def are_scales(value: object) -> TypeGuard[list[list[int]]]:
    """Whether a value from a file is a list of (h, w)."""
    return isinstance(value, list) and all(
        isinstance(pair, list) and len(pair) == 2 and all(type(n) is int and 0 < n <= _LARGEST for n in pair)
        for pair in value
    )
