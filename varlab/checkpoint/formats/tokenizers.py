"""The tokenizers of VAR, VQGAN and LlamaGen: their sizes from shapes, and which tensor is which."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from varlab.checkpoint.formats.cnn import CONV_BLOCKS, DOWN_UP, VAR, Names, cnn_links, infer_cnn
from varlab.checkpoint.formats.files import State
from varlab.checkpoint.formats.links import Link, same
from varlab.config import Config
from varlab.types import VarlabError

Scales = Sequence[Sequence[int]]

NAMES: Mapping[str, Names] = {"var": VAR, "vqgan": DOWN_UP, "llamagen": CONV_BLOCKS}
_EXTRAS = {
    "var": r"quantize\.ema_vocab_hit_SV",
    "vqgan": r"loss\..*|model_ema\..*|colorize",
    "llamagen": r"quantize\.codebook_used",
}


def infer_tokenizer(name: str, state: State, options: Mapping[str, Any], path: Path) -> Config:
    """What shapes and names tell of the tokenizer; scales, code_norm and the like come from ``options``."""
    cnn = infer_cnn(state, NAMES[name], path)
    for key in ("quantize.embedding.weight", "quant_conv.weight"):
        if key not in state:
            raise VarlabError(f"{path} has no tensor '{key}', which a model of this kind needs.")
    vocab_size, code_dim = state["quantize.embedding.weight"].shape
    phi = [k for k in state if re.fullmatch(r"quantize\.quant_resi\.(qresi_ls\.\d+|qresi|\d+)\.weight", k)]
    return {
        **options,
        **cnn,
        "vocab_size": int(vocab_size),
        "code_dim": int(code_dim),
        "quant_kernel": int(state["quant_conv.weight"].shape[-1]),
        "phi_count": len(phi),
    }


def phi_style(state: State) -> str | None:
    """How φ are shared: each (one a scale), one, some; None where there are none."""
    for style, pattern in _PHI.items():
        if pattern.format(0) + ".weight" in state:
            return style
    return None


_PHI = {
    "each": "quantize.quant_resi.{}",
    "one": "quantize.quant_resi.qresi",
    "some": "quantize.quant_resi.qresi_ls.{}",
}


def tokenizer_links(name: str, config: Mapping[str, Any], phi: str | None) -> list[Link]:
    """Every tensor of a tokenizer. phi: see ``phi_style``."""
    links = cnn_links(config, NAMES[name])
    links += same("quant_conv", "quant_conv") + same("post_quant_conv", "post_quant_conv")
    links += same("quantizer.codebook", "quantize.embedding", "weight")
    for k in range(config["phi_count"]):
        links += same(f"quantizer.phi.{k}.conv", _PHI[phi or "some"].format(k))
    return links


def tokenizer_extras(name: str, key: str) -> bool:
    """Keys that a file of this kind may have beside the model's."""
    return re.fullmatch(_EXTRAS[name], key) is not None


def default_phi(config: Mapping[str, Any]) -> str | None:
    """How a tokenizer that was trained here shares its φ, in the official code's terms."""
    count, scales = config["phi_count"], len(config["scales"])
    return None if count == 0 else "one" if count == 1 else "each" if count == scales and count != 4 else "some"


def check_tokenizer(name: str, config: Mapping[str, Any]) -> None:
    """VarlabError where a tokenizer of ours cannot be one of theirs."""
    wrong = None
    if name == "var" and config["phi_count"] == 0:
        wrong = "has no φ"
    elif name != "var" and (config["phi_count"] or len(config["scales"]) > 1):
        wrong = "has φ or several scales"
    elif name == "llamagen" and not config["cosine"]:
        wrong = "has no cosine codebook"
    elif name != "llamagen" and (config["cosine"] or config["decoder_channel_mult"]):
        wrong = "has a cosine codebook or a decoder of other widths"
    elif name == "var" and config["z_channels"] not in (None, config["code_dim"]):
        wrong = "has z_channels other than code_dim"
    if wrong:
        raise VarlabError(f"This tokenizer cannot be written as format={name}: it {wrong}.")


def square(tokens: int) -> list[list[int]] | None:
    """One square scale of so many tokens, where there is one."""
    side = math.isqrt(tokens)
    return [[side, side]] if side * side == tokens else None
