"""``init=DIR``: start a training from the weights of another run, at its own or another resolution."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

from varlab.checkpoint import check_state, load_weights, read_weights
from varlab.config import Config
from varlab.files import sha256
from varlab.recipe.assembly import Build
from varlab.recipe.preflight.named_runs import read_init
from varlab.run.record import FILE, Parent
from varlab.run.trust import Trust
from varlab.tokenizer import VQTokenizer
from varlab.transformer import Transformer
from varlab.transformer.interpolation import resized_state

logger = logging.getLogger(__name__)


class InitWeights:
    """The run that a training starts from: its architecture, and its raw weights (training never was at their average).

    kind: tokenizer or generator. trust: what its record may build. Raises VarlabError unless the run is a finished one of
    this kind.
    """

    def __init__(self, run: str | Path, kind: str, trust: Trust):
        path = Path(run)
        record = read_init(path, kind)
        trust.check({key: value for key, value in record.build.items() if key != "classes"}, path / FILE)
        self.build = Build.from_json(record.build)
        self._weights = path / "weights_raw.safetensors"
        self.parent = Parent(run=str(path), weights_sha256=sha256(self._weights))

    def tokenizer(self, scales: list[list[int]] | None) -> Config:
        """Return the architecture of its tokenizer, with other scales if they are given."""
        return self.build.tokenizer | ({"scales": scales} if scales else {})

    def load_transformer(self, transformer: Transformer, scales: Sequence[tuple[int, int]]) -> None:
        """Load its weights; interpolate positions and levels if the scales differ. On ``meta`` they are only checked."""
        old, new = ([tuple(scale) for scale in one] for one in (self.build.tokenizer.get("scales", scales), scales))
        state = read_weights(self._weights)
        if old != new:
            logger.info("init: positions and levels interpolated from scales %s to %s", old, new)
            state = resized_state(state, old, new)
        check_state(transformer.state_dict(), state, self._weights)
        if not next(transformer.parameters()).is_meta:
            transformer.load_state_dict(state)

    def load_tokenizer(self, tokenizer: VQTokenizer) -> None:
        """Load its weights, which fit any resolution."""
        load_weights(tokenizer, self._weights)
