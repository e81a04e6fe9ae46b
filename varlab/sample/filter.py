"""From logits to a token: temperature, top-k, top-p, and a draw from a uniform number."""

from __future__ import annotations

import torch
from torch import Tensor


def filter_logits(logits_BlV: Tensor, *, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Logits with excluded tokens at -inf.

    temperature > 0 divides the logits first. top_k > 0 keeps the k largest, and ties with the k-th. 0 < top_p < 1 removes
    the least likely tokens, as long as their probabilities sum to at most 1 - top_p; the most likely token always stays.
    """
    logits_BlV = logits_BlV / temperature
    V = logits_BlV.shape[-1]
    if 0 < top_k < V:
        least = logits_BlV.topk(top_k, dim=-1).values[..., -1:]
        logits_BlV = logits_BlV.masked_fill(logits_BlV < least, -torch.inf)
    if 0 < top_p < 1:
        ascending, where = logits_BlV.sort(dim=-1)
        tail = ascending.softmax(-1).cumsum(-1) <= 1 - top_p
        tail[..., -1] = False
        logits_BlV = logits_BlV.masked_fill(tail.scatter(-1, where, tail), -torch.inf)
    return logits_BlV


def pick(logits_BlV: Tensor, u_Bl: Tensor) -> Tensor:
    """Draw idx_Bl by the inverse cumulative distribution. u_Bl: uniform in [0, 1), a number for each token.

    Computed in float64, so that rounding never draws a token of probability zero.
    """
    cdf_BlV = logits_BlV.double().softmax(-1).cumsum(-1)
    reached = u_Bl.double()[..., None] * cdf_BlV[..., -1:]
    return torch.searchsorted(cdf_BlV, reached, right=True).squeeze(-1).clamp_max(logits_BlV.shape[-1] - 1)
