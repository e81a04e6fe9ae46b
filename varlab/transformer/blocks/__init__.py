"""Transformer blocks. A block family is a block and the norm before the head; both see x_BLD and a ``Context``."""

from varlab.transformer.blocks.adaln import AdaLNBlock, AdaLNHeadNorm, SharedAdaLNBlock
from varlab.transformer.blocks.gpt2 import GPT2Block, PlainHeadNorm

__all__ = ["AdaLNBlock", "AdaLNHeadNorm", "GPT2Block", "PlainHeadNorm", "SharedAdaLNBlock"]
