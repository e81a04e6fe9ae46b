"""What a data set says of itself, for rooms and checks that work without torch."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["DataInfo", "Fault"]


@dataclass(frozen=True)
class DataInfo:
    """What a shard set says of itself: read from its index, never configured."""

    path: str
    classes: tuple[str, ...]
    image_size: tuple[int, int]  # (H, W)
    counts: dict[str, int]  # images per split
    hash: str  # of the index: two shard sets with one hash hold the same bytes
    source: str
    condition: str | None = None  # what the second image of each sample is (edges, lowres …); None: there is none
    boxes: bool = False  # whether each sample says where in its picture it lies
    tokens: str | None = None  # the hash of the token maps that stand for the training images; None: they are images
    encoded: int = 0  # images that were tokenized, once, for those
    view: str = "image"  # what is handed out as the image: "condition" turns a training to the second images

    @property
    def num_classes(self) -> int:
        return len(self.classes)


@dataclass(frozen=True)
class Fault:
    """Something wrong in a shard: its kind (varlab.data.faults names them all), where, and what exactly.

    key: of the sample; empty where it is the shard. samples: how many are lost by it.
    """

    kind: str
    shard: str
    key: str
    detail: str
    samples: int = 1

    def __str__(self) -> str:
        return f"{self.kind}: {f'sample {self.key} in ' if self.key else ''}{self.shard} ({self.detail})"
