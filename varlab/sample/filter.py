"""From logits to a token: temperature, top-k, top-p, and a draw from a uniform number."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_CACHED = 1 << 17  # logits that are drawn from at once on a processor, so that their probabilities stay in its cache
_LANES = 16  # numbers that a softmax on a processor adds side by side


def filter_logits(logits_BlV: Tensor, *, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Logits with excluded tokens at -inf.

    temperature > 0 divides the logits first. top_k > 0 keeps the k largest, and ties with the k-th. 0 < top_p < 1 removes
    the least likely tokens, as long as their probabilities sum to at most 1 - top_p; the most likely token always stays.
    """
    logits_BlV = logits_BlV if temperature == 1 else logits_BlV / temperature
    V, by_p = logits_BlV.shape[-1], 0 < top_p < 1
    k = top_k if 0 < top_k < V else V
    if k == V and not by_p:
        return logits_BlV
    if logits_BlV.is_cuda and torch.cuda.is_current_stream_capturing():
        return logits_BlV.masked_fill(_excluded(logits_BlV, k, top_p), -torch.inf)
    # A few more than k, for ties with the k-th, and so many that a softmax rounds as over the whole row.
    size = min(k + k // 8 + (V - k - k // 8) % _LANES, V)
    ascending = _largest(logits_BlV, size)
    least = ascending[..., -k, None]
    if not by_p:
        return logits_BlV.masked_fill(logits_BlV < least, -torch.inf)
    if size < V and bool((ascending[..., :1] == least).any()):
        ascending = _largest(logits_BlV, V)
    ascending = ascending.masked_fill(ascending < least, -torch.inf)
    tail = _tail(ascending, top_p)
    floor = ascending.gather(-1, tail.sum(-1, keepdim=True))
    excluded = logits_BlV < floor
    tied_Bl = (tail & (ascending == floor)).any(-1)
    if bool(tied_Bl.any()):
        excluded[tied_Bl] = _tail_in_order(logits_BlV[tied_Bl], least[tied_Bl], top_p)
    return logits_BlV.masked_fill(excluded, -torch.inf)


def _excluded(logits_BlV: Tensor, k: int, top_p: float) -> Tensor:
    """Which tokens the filters exclude, by one sort, for which the host does not wait for the device."""
    ascending, where = logits_BlV.sort(dim=-1)
    hidden = ascending < ascending[..., -k, None]
    if 0 < top_p < 1:
        hidden |= _tail(ascending.masked_fill(hidden, -torch.inf), top_p)
    return torch.zeros_like(hidden).scatter(-1, where, hidden)


def _tail(ascending_BlV: Tensor, top_p: float) -> Tensor:
    """The tokens that top-p removes, of logits in ascending order."""
    tail = ascending_BlV.softmax(-1).cumsum(-1) <= 1 - top_p
    tail[..., -1] = False
    return tail


def _tail_in_order(logits_nV: Tensor, least_n1: Tensor, top_p: float) -> Tensor:
    """What both filters exclude by torch's sort, whose order decides which of equally likely tokens are removed."""
    ascending, where = logits_nV.masked_fill(logits_nV < least_n1, -torch.inf).sort(dim=-1)
    tail = _tail(ascending, top_p)
    return tail.scatter(-1, where, tail)


def _largest(logits_BlV: Tensor, size: int) -> Tensor:
    """The ``size`` largest logits of each token of a sample, in ascending order."""
    if logits_BlV.device.type != "cpu":
        return logits_BlV.topk(size, dim=-1).values.flip(-1)
    rest = logits_BlV.shape[-1] - size  # numpy orders numbers without their indices, many times as fast as torch
    narrow = logits_BlV.dtype == torch.bfloat16  # which numpy does not know
    row = (logits_BlV.float() if narrow else logits_BlV).detach().numpy()
    largest = torch.from_numpy(np.sort(np.partition(row, rest)[..., rest:] if rest else row))
    return largest.to(logits_BlV.dtype)


def pick(logits_BlV: Tensor, u_Bl: Tensor) -> Tensor:
    """Draw idx_Bl by the inverse cumulative distribution. u_Bl: uniform in [0, 1), a number for each token.

    Computed in float64, so that rounding never draws a token of probability zero.
    """
    rows_nV, u_n = logits_BlV.flatten(0, -2), u_Bl.flatten()
    size = max(1, _CACHED // rows_nV.shape[1] if rows_nV.device.type == "cpu" else len(rows_nV))
    parts = [_picked(*part) for part in zip(rows_nV.split(size), u_n.split(size), strict=True)]
    return torch.cat(parts).view(u_Bl.shape)


def _picked(logits_nV: Tensor, u_n: Tensor) -> Tensor:
    cdf_nV = logits_nV.softmax(-1, dtype=torch.float64).cumsum_(-1)
    reached = u_n.double()[..., None] * cdf_nV[..., -1:]
    return torch.searchsorted(cdf_nV, reached, right=True).squeeze(-1).clamp_max(logits_nV.shape[-1] - 1)
