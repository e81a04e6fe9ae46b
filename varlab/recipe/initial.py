"""``init=DIR``: a training that starts from another run's weights, imported ones too, at its own or another resolution."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from torch import nn

from varlab.checkpoint import check_state, read_weights
from varlab.config import Config
from varlab.files import sha256
from varlab.run.directory import read_run
from varlab.transformer.interpolation import resized_state
from varlab.types import VarlabError

logger = logging.getLogger(__name__)


class Initial:
    """The run that a training starts from. kind: tokenizer or generator, which it must be, too."""

    def __init__(self, run: str | Path, kind: str):
        self.path = Path(run)
        record = read_run(self.path)
        self.build: Config = record.get("build") or {}
        found = (
            "generator" if "transformer" in self.build else "tokenizer" if "tokenizer" in self.build else "classifier"
        )
        if found != kind:
            raise VarlabError(f"init={run} is the run of a {found}: a {kind} cannot start from it.")
        if record["outcome"]["state"] != "finished":
            raise VarlabError(f"init={run} is {record['outcome']['state']}, not finished.")

    @property
    def weights(self) -> Path:
        """The raw ones: an average is no point that training was ever at."""
        return self.path / "weights_raw.safetensors"

    def record(self) -> Config:
        """For run.json's parents."""
        return {"run": str(self.path), "weights_sha256": sha256(self.weights)}

    def tokenizer_config(self, scales: Any) -> Config:
        """Its architecture, at other scales where they are given."""
        return self.build["tokenizer"] | ({"scales": scales} if scales else {})

    def load_transformer(self, transformer: nn.Module, scales: Any) -> None:
        """Its weights; positions and levels interpolated where the scales are others."""
        old, new = ([tuple(scale) for scale in one] for one in (self.build["tokenizer"]["scales"], scales))
        state = read_weights(self.weights)
        if old != new:
            logger.info("init: positions and levels interpolated from scales %s to %s", old, new)
            state = resized_state(state, old, new)
        _load(transformer, state, self.weights)

    def load_tokenizer(self, tokenizer: nn.Module) -> None:
        """Its weights, which belong to no resolution."""
        _load(tokenizer, read_weights(self.weights), self.weights)


def _load(module: nn.Module, state: Any, path: Path) -> None:
    check_state(module.state_dict(), state, path)
    module.load_state_dict(state)
