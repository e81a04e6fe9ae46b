"""The contents of official checkpoints besides parameters: masks and levels, which follow from sizes, and statistics."""

from __future__ import annotations

import torch
from torch import Tensor

from varlab.checkpoint.formats.state import State
from varlab.config import Config

_STATISTICS = ("quantize.ema_vocab_hit_SV", "quantize.codebook_used")
_LLAMAGEN_USED = 65536  # length of codebook_used in the official code, for every codebook


def kept_buffers(state: State) -> State:
    """The statistics of official trainers: our models have none, but export writes them back."""
    return {key: state[key] for key in _STATISTICS if key in state}


def derived_buffers(name: str, build: Config, *, transformer: bool, rows: int, unmasked: int) -> State:
    """The buffers that the official code expects in a file, made from sizes.

    rows: of VQGAN's position table. unmasked: number of its first tokens that all attend to each other.
    """
    if name == "var":
        return _var_transformer(build) if transformer else _hits(build)
    if name == "vqgan" and transformer:
        mask = torch.ones(rows, rows).tril()
        mask[:unmasked, :unmasked] = 1
        return {f"blocks.{i}.attn.mask": mask[None, None].clone() for i in range(build["transformer"]["depth"])}
    return {} if name == "vqgan" or transformer else {"quantize.codebook_used": torch.zeros(_LLAMAGEN_USED)}


def _hits(build: Config) -> State:
    config = build["tokenizer"]
    return {"quantize.ema_vocab_hit_SV": torch.zeros(len(config["scales"]), config["vocab_size"])}


def _var_transformer(build: Config) -> State:
    level_L = torch.cat([torch.full((h * w,), k) for k, (h, w) in enumerate(build["tokenizer"]["scales"])])
    hidden = level_L[:, None] < level_L[None, :]
    mask: Tensor = torch.zeros(len(level_L), len(level_L)).masked_fill(hidden, -torch.inf)
    width = build["transformer"]["width"]
    keys = {f"blocks.{i}.attn.zero_k_bias": torch.zeros(width) for i in range(build["transformer"]["depth"])}
    return {"lvl_1L": level_L[None], "attn_bias_for_masking": mask[None, None], **keys}


def unmasked_tokens(state: State) -> int | None:
    """The number of VQGAN's first tokens that all attend to each other; None where the file has no masks."""
    mask = state.get("blocks.0.attn.mask")
    if mask is None:
        return None
    first = int(mask.flatten(0, -2)[0].sum())
    return 0 if first <= 1 else first
