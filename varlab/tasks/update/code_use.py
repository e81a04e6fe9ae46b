"""The use of a tokenizer's codes over time, and the revival of unused codes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from varlab.metrics.tokenizer_scores import codebook_health
from varlab.rng import Stream
from varlab.tasks.distributed import collectives
from varlab.tasks.update.ema import EMA
from varlab.tasks.update.optimizer import forget_rows
from varlab.tokenizer import VQTokenizer
from varlab.tokenizer.codebook import Codebook
from varlab.types import Quantized


@dataclass(frozen=True, kw_only=True)
class Revival:
    """Codes that no scale used in the last ``every`` images are replaced by encoder vectors.

    until: the fraction of the training, or above 1 the number of images, after which no code is replaced.
    """

    every: int
    until: int | float

    def due(self, before: int, after: int, total_images: int) -> bool:
        """Whether the update that took the clock from ``before`` to ``after`` passed a multiple of ``every``."""
        until = self.until if self.until > 1 else self.until * total_images
        return before // self.every < after // self.every and after <= until


class CodebookUse:
    """Counts per scale since the last log point, and since the last revival; summed over ranks at once."""

    def __init__(self, *, scales: int, vocab_size: int):
        self._logged_KV = torch.zeros(scales, vocab_size, dtype=torch.int64)
        self._revived_KV = torch.zeros_like(self._logged_KV)

    def add(self, counts_KV: Tensor) -> None:
        """Count this rank's share of a batch."""
        counts_KV = collectives.sum_over_ranks(counts_KV.clone())
        self._logged_KV = self._logged_KV.to(counts_KV.device) + counts_KV
        self._revived_KV = self._revived_KV.to(counts_KV.device) + counts_KV

    def health(self) -> dict[str, float]:
        """usage/<k> and perplexity/<k> since ``reset_health``."""
        return codebook_health(self._logged_KV.cpu())

    def reset_health(self) -> None:
        """Begin new counts for the log."""
        self._logged_KV = torch.zeros_like(self._logged_KV)

    def take_dead(self) -> Tensor:
        """dead_V: whether no scale has used a code since the last call."""
        dead_V = self._revived_KV.sum(0) == 0
        self._revived_KV = torch.zeros_like(self._revived_KV)
        return dead_V

    def state(self) -> dict[str, Tensor]:
        """For a checkpoint."""
        return {"logged_KV": self._logged_KV, "revived_KV": self._revived_KV}

    def load_state(self, state: Mapping[str, Tensor]) -> None:
        """Restore ``state``."""
        self._logged_KV, self._revived_KV = state["logged_KV"].clone(), state["revived_KV"].clone()


@torch.no_grad()
def revive(
    tokenizer: VQTokenizer, dead_V: Tensor, candidates_NC: Tensor, *, stream: Stream, ema: EMA, optimizer: Optimizer
) -> int:
    """Replace the dead codes by vectors of all ranks, the same on each. Returns their number.

    The average takes over the new rows, and the optimizer's moments of these rows become 0.
    """
    tables = {name: p for name, p in tokenizer.named_parameters() if p.ndim == 2 and len(p) == len(dead_V)}
    before = {name: parameter.clone() for name, parameter in tables.items()}
    count = tokenizer.revive(dead_V, collectives.gather_rows(candidates_NC), stream)
    for name, parameter in tables.items():
        rows = (parameter != before[name]).any(1)
        ema.overwrite(name, rows, parameter[rows])
        forget_rows(optimizer, parameter, rows)
    return count


@torch.no_grad()
def average_codes(tokenizer: VQTokenizer, quantized: Sequence[Quantized]) -> None:
    """Move codes that are moving averages (``Codebook.ema``) by the vectors that chose them in an update, on all ranks."""
    codebook = getattr(getattr(tokenizer, "quantizer", None), "codebook", None)
    if not isinstance(codebook, Codebook) or codebook.ema is None:
        return
    vector_NC = torch.cat([q.candidates_NC for q in quantized])
    idx_N = torch.cat([torch.cat(q.maps, 1).flatten() for q in quantized])
    count_V = vector_NC.new_zeros(tokenizer.vocab_size).index_add(0, idx_N, torch.ones_like(vector_NC[:, 0]))
    sum_VC = vector_NC.new_zeros(tokenizer.vocab_size, vector_NC.shape[1]).index_add(0, idx_N, vector_NC)
    codebook.average(collectives.sum_over_ranks(count_V), collectives.sum_over_ranks(sum_VC))
