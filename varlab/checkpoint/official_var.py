"""Names of the official VAR code's tensors (vae_ch160v4096z32.pth, var_d*.pth) in ours: a renaming, no arithmetic."""

from __future__ import annotations

import re

from torch import Tensor

State = dict[str, Tensor]

_RES = {"norm1": "norm1", "conv1": "conv1", "norm2": "norm2", "conv2": "conv2", "nin_shortcut": "shortcut"}
_MIDDLE = {"block_1": "0", "attn_1": "1", "block_2": "2"}


def tokenizer_key(key: str, *, stages: int) -> str:
    """One key of the official VQVAE. stages: resolutions of the CNN (the decoder numbers them from the finest)."""
    key = key.replace("proj_out", "proj").replace("nin_shortcut", _RES["nin_shortcut"])
    key = re.sub(r"\.mid\.(block_1|attn_1|block_2)\.", lambda m: f".middle.{_MIDDLE[m[1]]}.", key)
    key = re.sub(r"\.(down|up)\.(\d+)\.(block|attn)\.(\d+)\.", lambda m: _stage(m, stages), key)
    key = re.sub(r"\.(down|up)\.(\d+)\.(?:down|up)sample\.", lambda m: f".stages.{2 * _level(m, stages) + 1}.", key)
    key = key.replace("quantize.embedding.", "quantizer.codebook.")
    return re.sub(r"quantize\.quant_resi\.(?:qresi_ls\.)?(\d+)\.", r"quantizer.phi.\1.conv.", key)


def _level(match: re.Match[str], stages: int) -> int:
    return int(match[2]) if match[1] == "down" else stages - 1 - int(match[2])


def _stage(match: re.Match[str], stages: int) -> str:
    """Only the lowest resolution attends, after each of its residual blocks."""
    lowest = int(match[2]) == stages - 1
    place = int(match[4]) * (2 if lowest else 1) + (match[3] == "attn")
    return f".stages.{2 * _level(match, stages)}.{place}."


def tokenizer_state(official: State, *, stages: int) -> State:
    """Our state dict of an official one; the usage statistic of its trainer is left behind."""
    return {tokenizer_key(k, stages=stages): v for k, v in official.items() if k != "quantize.ema_vocab_hit_SV"}


_TRANSFORMER = (
    (r"^pos_start$", "start"),
    (r"^pos_1LC$", "position.weight"),
    (r"^lvl_embed\.", "level."),
    (r"^class_emb\.", "class_embedding."),
    (r"^word_embed\.", "word."),
    (r"^head_nm\.ada_lin\.1\.", "head_norm.modulate."),
    (r"\.attn\.mat_qkv\.", ".attention.qkv."),
    (r"\.attn\.scale_mul_1H11$", ".attention.log_scale"),
    (r"\.attn\.", ".attention."),
    (r"\.ffn\.fc1\.", ".mlp.0."),
    (r"\.ffn\.fc2\.", ".mlp.2."),
    (r"\.ada_lin\.1\.", ".modulate."),
)
_BUFFERS = ("lvl_1L", "attn_bias_for_masking", "zero_k_bias")


def transformer_key(key: str) -> str:
    """One key of the official VAR transformer."""
    for pattern, ours in _TRANSFORMER:
        key = re.sub(pattern, ours, key)
    return key


def transformer_state(official: State) -> State:
    """Our state dict of an official one; derived buffers (mask, levels, zero key bias) are left behind."""
    state = {transformer_key(k): v for k, v in official.items() if not k.endswith(_BUFFERS)}
    state["start"], state["position.weight"] = state["start"].flatten(), state["position.weight"].flatten(0, 1)
    return {k: v.flatten(0, 1) if k.endswith("log_scale") else v for k, v in state.items()}
