"""Import and export checkpoints of VAR, VQGAN (taming-transformers) and LlamaGen: renaming, no arithmetic."""

from varlab.checkpoint.formats.buffers import derived_buffers, kept_buffers, unmasked_tokens
from varlab.checkpoint.formats.links import Link, read_links, write_links
from varlab.checkpoint.formats.state import State, parts, read_state
from varlab.checkpoint.formats.tokenizers import (
    check_tokenizer,
    default_phi,
    infer_tokenizer,
    phi_style,
    square,
    tokenizer_extras,
    tokenizer_links,
)
from varlab.checkpoint.formats.transformers import (
    INFER,
    check_transformer,
    cut_positions,
    num_classes,
    rejoin_positions,
    stripped,
    transformer_extras,
    transformer_links,
    var_scales,
)

__all__ = [
    "INFER",
    "Link",
    "State",
    "check_tokenizer",
    "check_transformer",
    "cut_positions",
    "default_phi",
    "derived_buffers",
    "infer_tokenizer",
    "kept_buffers",
    "num_classes",
    "parts",
    "phi_style",
    "read_links",
    "read_state",
    "rejoin_positions",
    "square",
    "stripped",
    "tokenizer_extras",
    "tokenizer_links",
    "transformer_extras",
    "transformer_links",
    "unmasked_tokens",
    "var_scales",
    "write_links",
]
