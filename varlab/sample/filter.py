"""From logits to a token: temperature, top-k, top-p, and a draw from a uniform number."""

from __future__ import annotations

import torch
from torch import Tensor

_LANES = 16  # numbers that a softmax on a processor adds side by side


def filter_logits(logits_BlV: Tensor, *, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Logits with excluded tokens at -inf.

    temperature > 0 divides the logits first. top_k > 0 keeps the k largest, and ties with the k-th. 0 < top_p < 1 removes
    the least likely tokens, as long as their probabilities sum to at most 1 - top_p; the most likely token always stays.
    """
    logits_BlV = logits_BlV / temperature
    V, by_p = logits_BlV.shape[-1], 0 < top_p < 1
    k = top_k if 0 < top_k < V else V
    # A few more than k, so that they hold the ties with the k-th, and so many that a softmax rounds as over the whole row.
    size = min(k + _LANES + (V - k) % _LANES, V)
    if k == V and not by_p:
        return logits_BlV
    largest = logits_BlV.topk(size, dim=-1).values if size < V else logits_BlV.sort(dim=-1, descending=True).values
    floor = least = largest[..., k - 1 : k]
    if by_p:
        ascending = largest.masked_fill(largest < least, -torch.inf).flip(-1)
        tail = _tail(ascending, top_p)
        floor = ascending.masked_fill(tail, torch.inf).amin(-1, keepdim=True)
        if bool((tail & (ascending == floor) | ((largest[..., -1:] == least) & (size < V))).any()):
            return _in_full(logits_BlV, least, top_p)
    return logits_BlV.masked_fill(logits_BlV < floor, -torch.inf)


def _tail(ascending_BlV: Tensor, top_p: float) -> Tensor:
    """The tokens that top-p removes, of logits in ascending order."""
    tail = ascending_BlV.softmax(-1).cumsum(-1) <= 1 - top_p
    tail[..., -1] = False
    return tail


def _in_full(logits_BlV: Tensor, least_Bl1: Tensor, top_p: float) -> Tensor:
    """Both filters with a sort of the whole vocabulary, whose order decides which of equally likely tokens are removed."""
    logits_BlV = logits_BlV.masked_fill(logits_BlV < least_Bl1, -torch.inf)
    ascending, where = logits_BlV.sort(dim=-1)
    tail = _tail(ascending, top_p)
    return logits_BlV.masked_fill(tail.scatter(-1, where, tail), -torch.inf)


def pick(logits_BlV: Tensor, u_Bl: Tensor) -> Tensor:
    """Draw idx_Bl by the inverse cumulative distribution. u_Bl: uniform in [0, 1), a number for each token.

    Computed in float64, so that rounding never draws a token of probability zero.
    """
    cdf_BlV = logits_BlV.double().softmax(-1).cumsum(-1)
    reached = u_Bl.double()[..., None] * cdf_BlV[..., -1:]
    return torch.searchsorted(cdf_BlV, reached, right=True).squeeze(-1).clamp_max(logits_BlV.shape[-1] - 1)
