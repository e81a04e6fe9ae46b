"""The autoregressive transformer: slots and a class in, logits out. It never learns which order runs."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from types import MappingProxyType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from varlab.processor import many_shapes
from varlab.rng import Rng
from varlab.transformer.attention import EVERYTHING, Visible
from varlab.transformer.blocks.adaln import AdaLNBlock, AdaLNHeadNorm
from varlab.transformer.blocks.modulation import modulation
from varlab.transformer.blocks.residual import BlockFactory
from varlab.transformer.cache import Cache
from varlab.transformer.cast_linear import WideLinear
from varlab.transformer.compilation import require_compilable
from varlab.transformer.context import SHARED, Context
from varlab.transformer.rotary import rotary_table, turns
from varlab.types import Slots, VarlabError, full_precision

VAR_EMBED: Mapping[str, bool] = MappingProxyType({"start": True, "position": True, "level": True})
VAR_INIT: Mapping[str, Any] = MappingProxyType(
    {"std": None, "residual": True, "position": 1.0, "head": 0.02, "modulation": 0.5, "gamma": 1e-3}
)


class Transformer(nn.Module):
    """The transformer of VAR (Tian et al. 2024), VQGAN or LlamaGen: ``block`` and ``head_norm`` decide. Default: VAR-d16.

    From the live objects: vocab_size (V), code_dim (C), num_classes, positions_P3 ((row, column, level) of each position),
    source_positions (true if the sources of inputs vary by sample, as in random orders: they are then embedded, too); for
    conditions cond_vocab (size of their vocabulary) and cond_tokens (how many precede an image; their positions follow the
    image's).

    From YAML: width (D), depth, heads; block and head_norm, factories from ``varlab.transformer``; token_inputs (inputs are
    embeddings of token ids, as in GPT-2, instead of projected codes, as in VAR); tied (classes and conditions are embedded
    by the token table, as in VQGAN, and there is no null class); embed: {start, position, level}, which of these embeddings
    are learned; rotary: base of the rotary embedding of an input's source position (None: no rotation); head_bias;
    drop_path (rate of the last block, growing linearly with depth); dropout (of the input, token by token); init:
    {std (null: √(1/(3D))), head, modulation, gamma, position, residual}, factors of VAR's recipe. unmasked: how
    many of the first slots all see each other (VQGAN's n_unmasked, for conditions in place of the first tokens).
    causal_condition: whether a condition's token sees only those before it, as in VQGAN (None: they all see each other).
    """

    def __init__(
        self,
        *,
        vocab_size: int,
        code_dim: int,
        num_classes: int,
        positions_P3: Sequence[Sequence[int]] | Tensor,
        source_positions: bool,
        width: int = 1024,
        depth: int = 16,
        heads: int = 16,
        block: BlockFactory = AdaLNBlock,
        head_norm: BlockFactory = AdaLNHeadNorm,
        token_inputs: bool = False,
        tied: bool = False,
        embed: Mapping[str, bool] = VAR_EMBED,
        rotary: float | None = None,
        head_bias: bool = True,
        drop_path: float = 0.0666667,
        dropout: float = 0.0,
        init: Mapping[str, Any] = VAR_INIT,
        cond_vocab: int = 0,
        cond_tokens: int = 0,
        unmasked: int = 0,
        causal_condition: bool | None = None,
    ):
        super().__init__()
        if width % heads:
            raise VarlabError(f"Transformer width {width} must be a multiple of heads {heads}.")
        if tied and (not token_inputs or max(num_classes, cond_vocab) > vocab_size):
            raise VarlabError(
                f"transformer.tied=true embeds classes ({num_classes}) and conditions ({cond_vocab}) by the table of the "
                f"{vocab_size} tokens: it needs token_inputs=true and no more of either."
            )
        positions_P3 = torch.as_tensor(positions_P3, device="cpu")
        places, levels = len(positions_P3) + cond_tokens, int(positions_P3[:, 2].max()) + 1 + (cond_tokens > 0)
        self.width, self.depth, self.num_classes, self.vocab_size = width, depth, num_classes, vocab_size
        self.cond_vocab, self.cond_tokens, self.dropout, self.unmasked = cond_vocab, cond_tokens, dropout, unmasked
        self.has_null_class, self.causal_condition = not tied, bool(causal_condition)
        self.class_embedding = None if tied else nn.Embedding(num_classes + 1, width)
        self.start = nn.Parameter(torch.empty(width)) if embed["start"] else None
        self.token_inputs = token_inputs
        self.word: nn.Module = nn.Embedding(vocab_size, width) if token_inputs else nn.Linear(code_dim, width)
        self.condition = nn.Embedding(cond_vocab, width) if cond_tokens and not tied else None
        self.position = nn.Embedding(places, width) if embed["position"] else None
        self.source = nn.Embedding(places, width) if source_positions else None
        self.level = nn.Embedding(levels, width) if embed["level"] else None
        self._add_rotary(positions_P3, rotary, width // heads)
        rates = [drop_path * i / max(depth - 1, 1) for i in range(depth)]
        self.blocks = nn.ModuleList(
            block(width=width, heads=heads, layer=i, drop_path=rate) for i, rate in enumerate(rates)
        )
        shared = any(getattr(block, "shares_modulation", False) for block in self.blocks)
        self.modulate = modulation(width, 6) if shared else None
        self.head_norm = head_norm(width=width)
        self.head = WideLinear(width, vocab_size, bias=head_bias)
        self._init_weights(**init)

    def _add_rotary(self, positions_P3: Tensor, base: float | None, head_dim: int) -> None:
        """One row per position, and a last row of zeros for inputs without a source (LlamaGen's class token)."""
        self.rotary_Pd2: Tensor | None
        if base is None:
            self.rotary_Pd2 = None
            return
        if head_dim % 4:
            raise VarlabError(f"transformer.rotary needs a head width that 4 divides, not {head_dim}.")
        table = rotary_table(positions_P3[:, 0], positions_P3[:, 1], head_dim=head_dim, base=base)
        self.register_buffer("rotary_Pd2", F.pad(table, (0, 0, 0, 0, 0, self.cond_tokens + 1)), persistent=False)

    @torch.no_grad()
    def _init_weights(
        self, *, std: float | None, head: float, modulation: float, gamma: float, position: float, residual: bool
    ) -> None:
        """VAR's recipe: truncated normals of std √(1/(3D)), residual outputs divided by √(2·depth), a small head."""
        std = math.sqrt(1 / self.width / 3) if std is None else std
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)):
                nn.init.trunc_normal_(module.weight, std=std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                module.bias.zero_()
        if self.start is not None:
            nn.init.trunc_normal_(self.start, std=std)
        if self.position is not None and position != 1:
            self.position.weight.mul_(position)
        self.head.weight.mul_(head)
        for name, weight in self.named_parameters():
            if residual and name.endswith(("attention.proj.weight", "mlp.2.weight", "mlp.down.weight")):
                weight.div_(math.sqrt(2 * self.depth))
        for module in self.modules():
            if isinstance(module, (AdaLNBlock, AdaLNHeadNorm)):
                module.init_modulation(modulation, gamma)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters without weight decay, beside the one-dimensional ones (VAR's recipe)."""
        names = ["position.weight", "source.weight", "level.weight"]
        names += [f"blocks.{i}.{name}" for i in range(self.depth) for name in ("attention.log_scale", "offset_116D")]
        own = dict(self.named_parameters())
        return {name for name in names if name in own}

    def classes(self, label_B: Tensor) -> Tensor:
        """label_B → cond_BD. The last label, ``num_classes``, is "no class"."""
        table: nn.Module = self.word if self.class_embedding is None else self.class_embedding
        return table(label_B)

    def embed(self, slots: Slots, cond_BD: Tensor) -> Tensor:
        """x_BLD: the known input (the class if there is none), plus its source, its target position and its scale.

        In float32 under autocast, too (VAR).
        """
        with full_precision(slots.x_BLC):
            x_BLD = self.word(slots.tok_BL.clamp_min(0) if self.token_inputs else slots.x_BLC)
        prefix = int((slots.step_L < 0).sum())  # the condition's slots come first
        if prefix:
            table = self.word if self.condition is None else self.condition
            x_BLD = torch.cat([table(slots.tok_BL[:, :prefix]).to(x_BLD.dtype), x_BLD[:, prefix:]], 1)
        nothing_BL1 = (slots.src_BL < 0)[:, :, None]
        start_BLD = (cond_BD if self.start is None else cond_BD + self.start)[:, None]
        place_BLD = torch.zeros_like(cond_BD[:1, None])
        if self.position is not None:
            place_BLD = self.position(slots.pos_BL)
        if self.level is not None:
            place_BLD = place_BLD + self.level(slots.level_L)
        if self.source is not None:
            place_BLD = place_BLD + self.source(slots.src_BL.clamp_min(0)).masked_fill(nothing_BL1, 0)
        return torch.where(nothing_BL1, start_BLD.to(x_BLD.dtype), x_BLD) + place_BLD

    def _ordered(self, step_L: Tensor) -> Tensor:
        """The steps, with one of its own for each of the condition's slots if these are causal."""
        prefix = int((step_L < 0).sum()) if self.causal_condition else 0
        return torch.cat([torch.arange(-prefix, 0), step_L[prefix:]]) if prefix else step_L

    def _unmasked(self, step_L: Tensor, cache: Cache | None) -> Tensor:
        """The steps, with the first ``unmasked`` slots in one common step."""
        if self.unmasked < 2 or (cache is not None and cache.steps):
            return step_L
        if cache is not None and len(step_L) < self.unmasked:
            raise VarlabError(
                f"The first {self.unmasked} tokens of this model see each other, so it cannot sample them one by one: "
                "give a condition of at least that many tokens."
            )
        return torch.cat(
            [step_L[: self.unmasked].amax(0, keepdim=True).expand(self.unmasked), step_L[self.unmasked :]]
        )[: len(step_L)]

    def context(
        self,
        slots: Slots,
        cond_BD: Tensor,
        *,
        cache: Cache | None,
        rng: Rng | None,
        ids_B: Tensor | None,
        compile: bool = False,
    ) -> Context:
        """The inputs that all blocks share."""
        if compile:
            require_compilable(cond_BD.device)
        step_L = self._unmasked(self._ordered(slots.step_L), cache)
        all_L = step_L if cache is None else cache.see(step_L)
        rotary_2B1Ld = shared_B16D = None
        if self.rotary_Pd2 is not None:
            rotary_2B1Ld = turns(self.rotary_Pd2[slots.src_BL])  # -1 is the row of zeros
        if self.modulate is not None:
            modulate = self.modulate

            def make() -> Tensor:
                return modulate(F.silu(cond_BD)).view(len(cond_BD), 1, 6, -1)

            shared_B16D = make() if cache is None else cache.modulated(SHARED, make)
        return Context(
            cond_BD=cond_BD,
            visible=EVERYTHING if all_L is None else Visible.of(step_L, all_L, cond_BD.device, sliced=compile),
            cache=cache,
            rng=None if rng is None or ids_B is None else rng.stream("dropout", ids_B.to(cond_BD.device)),
            rotary_2B1Ld=rotary_2B1Ld,
            shared_B16D=shared_B16D,
            compile=compile,
        )

    def forward(
        self,
        slots: Slots,
        label_B: Tensor,
        *,
        cache: Cache | None = None,
        rng: Rng | None = None,
        ids_B: Tensor | None = None,
        recompute: bool = False,
        compile: bool = False,
        mix: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """logits_BLV of the slots' tokens, in the type of the head: narrower than float32 under autocast.

        label_B: int64 in [0, num_classes], the last for "no class". cache: slots of earlier steps, extended in place.
        rng with ids_B (one id a sample): dropout and stochastic depth, in training only. recompute: keep only the inputs of
        blocks for the backward pass, which runs each block once more (activation checkpointing, Chen et al. 2016). All bits
        stay the same, since random draws depend on no state. compile: the blocks' functions are those of ``torch.compile``,
        which is for GPUs. mix: combines samples linearly, with weights that sum to 1,
        as guidance does; since the head is linear, it then makes only the combined logits.
        """
        cond_BD = self.classes(label_B)
        context = self.context(slots, cond_BD, cache=cache, rng=rng, ids_B=ids_B, compile=compile)
        return self.trunk(self.embed(slots, cond_BD), context, recompute=recompute, mix=mix)

    def trunk(
        self,
        x_BLD: Tensor,
        context: Context,
        *,
        recompute: bool = False,
        mix: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """logits_BLV of embedded slots."""
        if context.rng is not None and self.dropout > 0:
            keep_BLD = context.rng.at(-1).uniform(*x_BLD.shape[1:]).to(x_BLD.device) >= self.dropout
            x_BLD = x_BLD * keep_BLD.to(x_BLD.dtype) / (1 - self.dropout)
        with many_shapes() if context.compile else nullcontext():
            for block in self.blocks:
                if recompute:
                    x_BLD = checkpoint(block, x_BLD, context, use_reentrant=False, preserve_rng_state=False)
                else:
                    x_BLD = block(x_BLD, context)
        x_BLD = self.head_norm(x_BLD, context)
        logits_BLV: Tensor = self.head(x_BLD if mix is None else mix(x_BLD))
        return logits_BLV
