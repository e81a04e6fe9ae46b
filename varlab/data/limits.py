"""Limits of the settings of data, checked without torch."""

from __future__ import annotations

from collections.abc import Sequence

from varlab.errors import VarlabError

__all__ = ["image_size", "require_at_least", "require_equal_shares", "require_share", "require_timeout"]


def require_at_least(minimum: int, **values: int) -> None:
    """Raise VarlabError if a setting of the data is smaller."""
    for name, value in values.items():
        if not isinstance(value, int | float):
            raise VarlabError(f"data.{name} is {value!r:.40}, but must be a number, at least {minimum}.")
        if not value >= minimum:
            raise VarlabError(f"data.{name} is {value!r:.40}, but must be at least {minimum}.")


def require_share(**values: float) -> None:
    """Raise VarlabError if a setting of the data is not in [0, 1]."""
    for name, value in values.items():
        if not isinstance(value, int | float) or not 0 <= value <= 1:
            raise VarlabError(f"data.{name} is {value!r:.40}, but it is a share: give 0 to 1.")


def require_equal_shares(batch: int, world: int) -> None:
    """Raise VarlabError if a global batch cannot be cut into equal parts for so many ranks."""
    if batch < 1 or batch % world:
        raise VarlabError(f"A global batch of {batch} cannot be shared by {world} ranks: make it a multiple of that.")


def require_timeout(seconds: float) -> float:
    """``data.timeout``. Raise VarlabError if it is not positive."""
    if not 0 < seconds < float("inf"):
        raise VarlabError(f"data.timeout is {seconds}, but it is a time in seconds: give more than 0.")
    return seconds


def image_size(size: int | Sequence[int]) -> tuple[int, int]:
    """(H, W) of ``data.size``, which is one number for squares or two."""
    height, width = (size, size) if isinstance(size, int) else size
    if min(height, width) < 1:
        raise VarlabError(f"data.size is {size}, but an image has at least one pixel.")
    return height, width
