"""What official checkpoints hold beside parameters: masks and levels, which follow from sizes, and trainers' statistics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from varlab.checkpoint.formats.files import State

_STATISTICS = ("quantize.ema_vocab_hit_SV", "quantize.codebook_used")
_LLAMAGEN_USED = 65536  # the official code's length of codebook_used, whatever the codebook


def kept_buffers(state: State) -> State:
    """Statistics of their trainers: no place here, but written back on export."""
    return {key: state[key] for key in _STATISTICS if key in state}


def derived_buffers(name: str, build: Mapping[str, Any], *, transformer: bool, rows: int, unmasked: int) -> State:
    """The buffers that the official code expects in a file, from sizes alone.

    rows: of VQGAN's position table. unmasked: how many of its first tokens all see each other.
    """
    if name == "var":
        return _var_transformer(build) if transformer else _hits(build)
    if name == "vqgan" and transformer:
        mask = torch.ones(rows, rows).tril()
        mask[:unmasked, :unmasked] = 1
        return {f"blocks.{i}.attn.mask": mask[None, None].clone() for i in range(build["transformer"]["depth"])}
    return {} if name == "vqgan" or transformer else {"quantize.codebook_used": torch.zeros(_LLAMAGEN_USED)}


def _hits(build: Mapping[str, Any]) -> State:
    config = build["tokenizer"]
    return {"quantize.ema_vocab_hit_SV": torch.zeros(len(config["scales"]), config["vocab_size"])}


def _var_transformer(build: Mapping[str, Any]) -> State:
    level_L = torch.cat([torch.full((h * w,), k) for k, (h, w) in enumerate(build["tokenizer"]["scales"])])
    hidden = level_L[:, None] < level_L[None, :]
    mask: Tensor = torch.zeros(len(level_L), len(level_L)).masked_fill(hidden, -torch.inf)
    width = build["transformer"]["width"]
    keys = {f"blocks.{i}.attn.zero_k_bias": torch.zeros(width) for i in range(build["transformer"]["depth"])}
    return {"lvl_1L": level_L[None], "attn_bias_for_masking": mask[None, None], **keys}


def unmasked_tokens(state: State) -> int | None:
    """How many of VQGAN's first tokens all see each other; None where the file has no masks."""
    mask = state.get("blocks.0.attn.mask")
    if mask is None:
        return None
    first = int(mask.flatten(0, -2)[0].sum())
    return 0 if first <= 1 else first
