"""Images that occur more than once in a shard set, found by the hashes in its index: no image is read."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from varlab.data.format.index import SPLITS, Index

__all__ = ["Duplicates", "find_duplicates"]

_NAMED = 5  # keys in a sentence


@dataclass(frozen=True)
class Duplicates:
    """The val images of a shard set whose bytes are also those of a train image, and the repeated images of each split.

    leaked: how many of the ``val`` images are in train, too; keys: of the first of them. repeated: in each split, images
    whose bytes another image before them has.
    """

    leaked: int = 0
    val: int = 0
    keys: tuple[str, ...] = ()
    repeated: dict[str, int] = field(default_factory=dict)

    @property
    def leakage(self) -> str:
        """The sentence that scores on val come with; empty if no val image is in train."""
        if not self.leaked:
            return ""
        more = ", …" if self.leaked > len(self.keys) else ""
        return f"{self.leaked} of {self.val} val images are train images, too ({', '.join(self.keys)}{more})"

    def __str__(self) -> str:
        repeated = [f"{n} {split} images repeat another one of {split}" for split, n in self.repeated.items() if n]
        return "; ".join(filter(None, [self.leakage, *repeated]))


def find_duplicates(index: Index) -> Duplicates:
    """Compare the hashes of all images. Packed images with the same pixels have the same bytes."""
    tables = {split: index.table(split) for split in SPLITS if split in index.tables and index.tables[split].count}
    repeated = {split: len(table) - len(np.unique(table["check"])) for split, table in tables.items()}
    if len(tables) < len(SPLITS):
        return Duplicates(repeated=repeated)
    train, val = (tables[split] for split in SPLITS)
    leaked_N = np.isin(val["check"], train["check"])
    return Duplicates(int(leaked_N.sum()), len(val), _keys(val["key"][leaked_N]), repeated)


def _keys(key_n: NDArray[np.bytes_]) -> tuple[str, ...]:
    return tuple(key.decode(errors="replace") for key in key_n[:_NAMED].tolist())
