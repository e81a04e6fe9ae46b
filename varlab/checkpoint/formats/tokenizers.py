"""The tokenizers of VAR, VQGAN and LlamaGen: sizes from shapes, and links between tensors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from varlab.checkpoint.formats.cnn_names import CONV_BLOCKS, DOWN_UP, VAR, CNNNames, cnn_links, infer_cnn
from varlab.checkpoint.formats.links import Link, same
from varlab.checkpoint.formats.state import State
from varlab.config import Config
from varlab.types import VarlabError

Scales = Sequence[Sequence[int]]

NAMES: Mapping[str, CNNNames] = {"var": VAR, "vqgan": DOWN_UP, "llamagen": CONV_BLOCKS}
_EXTRAS = {
    "var": r"quantize\.ema_vocab_hit_SV",
    "vqgan": r"loss\..*|model_ema\..*|colorize",
    "llamagen": r"quantize\.codebook_used",
}


_GUMBEL = {"kl": 1e-8, "temperature": [1.0, 0.0625]}
"""For further training of VQGAN's Gumbel codes: the code's default, and the temperature of DALL-E's dVAE."""


def infer_tokenizer(name: str, state: State, options: Config, path: Path) -> Config:
    """Infer a tokenizer's configuration from tensors; scales, code_norm and the like come from ``options``."""
    cnn = infer_cnn(state, NAMES[name], path)
    drawn = name == "vqgan" and "quantize.proj.weight" in state
    table = f"{_table(drawn)}.weight"
    for key in (table, "quant_conv.weight"):
        if key not in state:
            raise VarlabError(f"{path} has no tensor '{key}', which a model of this kind needs.")
    vocab_size, code_dim = state[table].shape
    phi = [k for k in state if re.fullmatch(r"quantize\.quant_resi\.(qresi_ls\.\d+|qresi|\d+)\.weight", k)]
    return {
        **options,
        **cnn,
        "vocab_size": int(vocab_size),
        "code_dim": int(code_dim),
        "quant_kernel": int(state["quant_conv.weight"].shape[-1]),
        "phi_count": len(phi),
        "gumbel": _GUMBEL if drawn else None,
    }


def _table(drawn: bool) -> str:
    """The name of the table of codes in a file."""
    return "quantize.embed" if drawn else "quantize.embedding"


def phi_style(state: State) -> str | None:
    """How φ are shared: ``each`` (one for each scale), ``one`` or ``some``; None without φ."""
    for style, pattern in _PHI.items():
        if pattern.format(0) + ".weight" in state:
            return style
    return None


_PHI = {
    "each": "quantize.quant_resi.{}",
    "one": "quantize.quant_resi.qresi",
    "some": "quantize.quant_resi.qresi_ls.{}",
}


def tokenizer_links(name: str, config: Config, phi: str | None) -> list[Link]:
    """The links of all tensors of a tokenizer. phi: see ``phi_style``."""
    links = cnn_links(config, NAMES[name])
    links += same("quant_conv", "quant_conv") + same("post_quant_conv", "post_quant_conv")
    links += same("quantizer.codebook", _table(config.get("gumbel") is not None), "weight")
    if config.get("gumbel") is not None:
        links += same("quantizer.proj", "quantize.proj")
    for k in range(config["phi_count"]):
        links += same(f"quantizer.phi.{k}.conv", _PHI[phi or "some"].format(k))
    return links


def tokenizer_extras(name: str, key: str) -> bool:
    """Whether a key is one of those that a file of this format may hold besides the model."""
    return re.fullmatch(_EXTRAS[name], key) is not None


def default_phi(config: Config) -> str | None:
    """How a tokenizer trained here shares its φ, in the terms of the official code."""
    count, scales = config["phi_count"], len(config["scales"])
    return None if count == 0 else "one" if count == 1 else "each" if count == scales and count != 4 else "some"


def check_tokenizer(name: str, config: Config) -> None:
    """Raise VarlabError where a tokenizer of ours cannot be written in a foreign format."""
    reason, kind = None, str(config["_target_"]).rpartition(".")[2]
    if kind != "VQTokenizer":
        reason = f"is a {kind}"
    elif "quantizer" in config:
        reason = f"has a quantizer of its own, {config['quantizer']['_target_']}"
    elif config.get("ema") is not None:
        reason = "has codes that are moving averages"
    elif name != "vqgan" and config.get("gumbel") is not None:
        reason = "draws its codes"
    elif name == "var" and config["phi_count"] == 0:
        reason = "has no φ"
    elif name != "var" and (config["phi_count"] or len(config["scales"]) > 1):
        reason = "has φ or several scales"
    elif name == "llamagen" and not config["cosine"]:
        reason = "has no cosine codebook"
    elif name != "llamagen" and (config["cosine"] or config["decoder_channel_mult"]):
        reason = "has a cosine codebook or a decoder of other widths"
    elif name == "var" and config["z_channels"] not in (None, config["code_dim"]):
        reason = "has z_channels other than code_dim"
    if reason:
        raise VarlabError(f"This tokenizer cannot be written as format={name}: it {reason}.")


def square(tokens: int) -> list[list[int]] | None:
    """The square scale with this number of tokens; None where there is none."""
    side = math.isqrt(tokens)
    return [[side, side]] if side * side == tokens else None
