"""The transformer: embeddings, blocks, block-causal attention from ``step_L``, KV cache. It never knows which order runs."""

from varlab.transformer.attention import Attention, Visible
from varlab.transformer.blocks import AdaLNBlock, AdaLNHeadNorm, GPT2Block, PlainHeadNorm, SharedAdaLNBlock
from varlab.transformer.cache import Cache
from varlab.transformer.context import Context
from varlab.transformer.llama import LlamaBlock, RMSHeadNorm
from varlab.transformer.model import Transformer
from varlab.transformer.working_copy import working_copy

__all__ = [
    "AdaLNBlock",
    "AdaLNHeadNorm",
    "Attention",
    "Cache",
    "Context",
    "GPT2Block",
    "LlamaBlock",
    "PlainHeadNorm",
    "RMSHeadNorm",
    "SharedAdaLNBlock",
    "Transformer",
    "Visible",
    "working_copy",
]
