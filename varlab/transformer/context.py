"""What every block of one forward pass is told beside its input."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from varlab.rng import Stream
from varlab.transformer.attention import Cache, Visible

HEAD, SHARED = -1, -2
"""Places among the layers of a cache for what belongs to no block."""


@dataclass(frozen=True)
class Context:
    """cond_BD: the class. visible, cache: see ``varlab.transformer.attention``. rng: of dropout, in training only.

    rotary_BLd2: cosine and sine by which queries and keys turn (``varlab.transformer.rotary``), where the transformer
    rotates. shared_B16D: the modulation that all blocks share, where they do.
    """

    cond_BD: Tensor
    visible: Visible
    cache: Cache | None
    rng: Stream | None
    rotary_BLd2: Tensor | None = None
    shared_B16D: Tensor | None = None
