"""The inputs that all blocks of one forward pass share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from varlab.rng import Stream
from varlab.transformer.attention import Visible
from varlab.transformer.cache import Cache
from varlab.transformer.compilation import Function, compiled, plain

HEAD, SHARED = -1, -2
"""Layer numbers in a cache for modulations that belong to no block."""


@dataclass(frozen=True)
class Context:
    """cond_BD: the class. visible: see ``varlab.transformer.attention``. rng: of dropout, in training only.

    rotary_2B1Ld: of the rotation of queries and keys (``varlab.transformer.rotary.turns``), None without rotation.
    shared_B16D: the modulation that all blocks share, None if each has its own. compile: whether blocks compute by compiled
    functions.
    """

    cond_BD: Tensor
    visible: Visible
    cache: Cache | None
    rng: Stream | None
    rotary_2B1Ld: Tensor | None = None
    shared_B16D: Tensor | None = None
    compile: bool = False

    @property
    def run(self) -> Callable[[Function], Function]:
        """What makes a block's function the one that is called."""
        return partial(compiled, varying=self.cache is not None) if self.compile else plain
