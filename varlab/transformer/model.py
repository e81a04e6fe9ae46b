"""The autoregressive transformer: slots and a class in, logits out. It never learns which order runs."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from varlab.rng import Rng
from varlab.transformer.attention import Cache, Visible
from varlab.transformer.blocks import AdaLNBlock, AdaLNHeadNorm, BlockFactory
from varlab.types import Slots, VarlabError


class Transformer(nn.Module):
    """VAR's transformer (Tian et al. 2024), or VQGAN's, by the choice of ``block`` and ``head_norm``.

    From the live objects: vocab_size (V), code_dim (C), num_classes, num_positions (P), num_levels, source_positions
    (true where the order's sources vary by sample, so that they must be told).
    From YAML: width (D), depth, heads; block and head_norm, factories from ``varlab.transformer.blocks``; token_inputs
    (inputs are embeddings of token ids, as in GPT-2, instead of projected codes, as in VAR); drop_path (rate of the last
    block, growing linearly with depth); init: {head, modulation, gamma}, factors of VAR's recipe.
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        code_dim: int,
        num_classes: int,
        num_positions: int,
        num_levels: int,
        source_positions: bool,
        width: int,
        depth: int,
        heads: int,
        block: BlockFactory,
        head_norm: BlockFactory,
        token_inputs: bool,
        drop_path: float,
        init: dict[str, float],
    ):
        super().__init__()
        if width % heads:
            raise VarlabError(f"Transformer width {width} must be a multiple of heads {heads}.")
        self.width, self.depth, self.num_classes = width, depth, num_classes
        self.class_embedding = nn.Embedding(num_classes + 1, width)
        self.start = nn.Parameter(torch.empty(width))
        self.token_inputs = token_inputs
        self.word: nn.Module = nn.Embedding(vocab_size, width) if token_inputs else nn.Linear(code_dim, width)
        self.position = nn.Embedding(num_positions, width)
        self.source = nn.Embedding(num_positions, width) if source_positions else None
        self.level = nn.Embedding(num_levels, width)
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            block(width=width, heads=heads, layer=i, drop_path=rate) for i, rate in enumerate(rates)
        )
        self.head_norm = head_norm(width=width)
        self.head = nn.Linear(width, vocab_size)
        self._init_weights(**init)

    @torch.no_grad()
    def _init_weights(self, *, head: float, modulation: float, gamma: float) -> None:
        """VAR's recipe: truncated normals of std √(1/(3D)), residual outputs divided by √(2·depth), a small head."""
        std = math.sqrt(1 / self.width / 3)
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.trunc_normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
        nn.init.trunc_normal_(self.start, std=std)
        self.head.weight.mul_(head)
        for name, weight in self.named_parameters():
            if name.endswith(("attention.proj.weight", "mlp.2.weight")):
                weight.div_(math.sqrt(2 * self.depth))
        for module in self.modules():
            if isinstance(module, (AdaLNBlock, AdaLNHeadNorm)):
                module.init_modulation(modulation, gamma)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that weight decay must leave alone beside the one-dimensional ones (VAR's recipe)."""
        names = ["position.weight", "source.weight", "level.weight"]
        names += [f"blocks.{i}.attention.log_scale" for i in range(self.depth)]
        own = dict(self.named_parameters())
        return {name for name in names if name in own}

    def _embed(self, slots: Slots, cond_BD: Tensor) -> Tensor:
        """x_BLD: the known input (the class where nothing is), plus where it came from, where it goes, which scale."""
        known_BLD = self.word(slots.tok_BL.clamp_min(0) if self.token_inputs else slots.x_BLC)
        nothing_BL1 = (slots.src_BL < 0)[:, :, None]
        start_BLD = (cond_BD + self.start)[:, None]
        place_BLD = self.position(slots.pos_BL) + self.level(slots.level_L)
        if self.source is not None:
            place_BLD = place_BLD + self.source(slots.src_BL.clamp_min(0)).masked_fill(nothing_BL1, 0)
        return torch.where(nothing_BL1, start_BLD.to(known_BLD.dtype), known_BLD) + place_BLD

    def forward(
        self,
        slots: Slots,
        label_B: Tensor,
        *,
        cache: Cache | None = None,
        rng: Rng | None = None,
        ids_B: Tensor | None = None,
    ) -> Tensor:
        """logits_BLV of the slots' tokens.

        label_B: int64 in [0, num_classes], the last for "no class". cache: slots of earlier steps, extended in place.
        rng with ids_B (one id a sample): stochastic depth, in training only.
        """
        cond_BD = self.class_embedding(label_B)
        visible = Visible.of(slots.step_L, slots.step_L if cache is None else cache.see(slots.step_L)).to(
            label_B.device
        )
        stream = None if rng is None or ids_B is None else rng.stream("dropout", ids_B)
        x_BLD = self._embed(slots, cond_BD)
        for block in self.blocks:
            x_BLD = block(x_BLD, cond_BD, visible, cache, stream)
        return self.head(self.head_norm(x_BLD, cond_BD, cache)).float()
