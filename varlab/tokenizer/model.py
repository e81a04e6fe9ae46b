"""The tokenizer: encoder, quantizer, decoder. One class for VAR's multi-scale tokenizer and for the plain VQGAN."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from varlab.config import Config
from varlab.processor import hardware_precision
from varlab.rng import Stream
from varlab.tokenizer.cnn import Decoder, Encoder
from varlab.tokenizer.gumbel import GumbelQuantizer
from varlab.tokenizer.inference import infer
from varlab.tokenizer.layers import ResBlock
from varlab.tokenizer.quantizer import CODE_DIM, Quantizer
from varlab.types import Maps, Quantized, Tokenizer, VarlabError, full_precision


class VQTokenizer(nn.Module):
    """Pixels in [-1, 1] to token maps and back; implements ``varlab.types.Tokenizer``. The defaults are VAR's tokenizer.

    quantizer: what turns latents into tokens; without it, a ``Quantizer`` is made from the remaining arguments (this is how
    the files in conf/tokenizer are written). channels × channel_mult: widths of the stages; the last stage runs at the latent
    resolution, so the tokenizer downsamples by 2^(stages - 1). decoder_channel_mult: the decoder's multipliers (None: the
    encoder's). res_blocks: residual blocks per stage (one more in the decoder). z_channels: channels between the CNNs and
    the quantizer's convolutions (None: code_dim, as in VAR). groups: of the GroupNorms. attention: the stages that attend
    (0: the finest, -1: the lowest resolution). mid_attention: whether the middle attends. quant_kernel: kernel size of the
    two convolutions around the quantizer. dropout: rate in the residual blocks, in training (None: 0). init_gain: the
    convolutions start as Xavier normals of that gain with biases of 0 (None: as torch makes them). gumbel: {kl, temperature}
    of a ``GumbelQuantizer`` (None: a ``Quantizer``).
    """

    def __init__(
        self,
        *,
        quantizer: Quantizer | None = None,
        channels: int = 160,
        channel_mult: Sequence[int] = (1, 1, 2, 2, 4),
        decoder_channel_mult: Sequence[int] | None = None,
        res_blocks: int = 2,
        z_channels: int | None = None,
        groups: int = 32,
        attention: Sequence[int] = (-1,),
        mid_attention: bool = True,
        quant_kernel: int = 3,
        dropout: float | None = None,
        init_gain: float | None = None,
        gumbel: Mapping[str, Any] | None = None,
        **quantizer_arguments: Any,
    ):
        super().__init__()
        own: Config = {**quantizer_arguments, **(gumbel or {})}
        if quantizer is not None and own:
            given = ", ".join(sorted(own))
            raise VarlabError(f"The tokenizer has a quantizer of its own: set {given} there (tokenizer.quantizer.…).")
        code_dim = int(own.get("code_dim", CODE_DIM)) if quantizer is None else quantizer.code_dim
        self.downsample = 2 ** (len(channel_mult) - 1)
        cnn: Config = dict(
            channels=channels,
            res_blocks=res_blocks,
            z_channels=code_dim if z_channels is None else z_channels,
            groups=groups,
            attention=attention,
            mid_attention=mid_attention,
        )
        # made in this order: the initial weights come from one random stream
        self.encoder = Encoder(channel_mult=channel_mult, **cnn)
        self.quant_conv = nn.Conv2d(cnn["z_channels"], code_dim, quant_kernel, padding=quant_kernel // 2)
        self.quantizer = quantizer or (Quantizer if gumbel is None else GumbelQuantizer)(**own)
        self.post_quant_conv = nn.Conv2d(code_dim, cnn["z_channels"], quant_kernel, padding=quant_kernel // 2)
        self.decoder = Decoder(channel_mult=decoder_channel_mult or channel_mult, **cnn)
        self.scales, self.code_dim = self.quantizer.scales, code_dim
        self.vocab_size = self.quantizer.vocab_size
        self.dropout = dropout or 0.0
        for place, block in enumerate(m for m in self.modules() if isinstance(m, ResBlock)):
            block.dropout, block.place = self.dropout, place
        if init_gain is not None:
            self.apply(partial(_xavier, gain=init_gain))

    @property
    def last_layer(self) -> Tensor:
        """The decoder's last convolution weight: where the adaptive λ compares gradients (VQGAN, eq. 7)."""
        return self.decoder.conv_out.weight

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the images, in pixels."""
        h, w = self.scales[-1]
        return h * self.downsample, w * self.downsample

    @property
    def draws(self) -> bool:
        """Whether training draws something, so that ``forward`` needs a stream."""
        return self.dropout > 0 or self.quantizer.draws

    def anneal(self, progress: float) -> None:
        """Set what follows the training's progress, from 0 to 1: the temperature of a ``GumbelQuantizer``."""
        if isinstance(self.quantizer, GumbelQuantizer):
            self.quantizer.anneal(progress)

    def latents(self, img_B3HW: Tensor, stream: Stream | None = None) -> Tensor:
        """f_BChw: the latents before quantization. stream: of the dropout, in training."""
        return self.quant_conv(self.encoder(img_B3HW, stream))

    def quantize(self, f_BChw: Tensor, stream: Stream | None = None) -> Quantized:
        """Token maps, f_hat with the straight-through gradient, the VQ loss and the counts of the codes."""
        return self.quantizer(f_BChw, stream) if self.quantizer.draws else self.quantizer(f_BChw)

    def forward(self, img_B3HW: Tensor, stream: Stream | None = None) -> tuple[Tensor, Quantized]:
        """Training: the reconstruction (not clamped, so that its gradient is nowhere zero) and the quantizer's output.

        stream: of the dropout and of drawn codes, with one id a sample; without it, nothing is dropped or drawn.
        """
        with hardware_precision(img_B3HW):
            quantized = self.quantize(self.latents(img_B3HW, stream), stream)
            return self.decoder(self.post_quant_conv(quantized.f_hat_BChw), stream), quantized

    @torch.no_grad()
    def encode(self, img_B3HW: Tensor) -> Maps:
        """img_B3HW → token maps, one idx_Bl a scale."""
        z_BZhw = infer(self.encoder, img_B3HW, pixels=math.prod(img_B3HW.shape[2:]))
        with full_precision(z_BZhw):
            return self.quantizer.encode(self.quant_conv(z_BZhw.float()))

    def embed(self, idx_Bl: Tensor) -> Tensor:
        """idx_Bl → h_BlC, the codes (of length 1 in a cosine codebook)."""
        return self.quantizer.codebook.embed(idx_Bl)

    def blank(self, batch: int) -> Tensor:
        """f_hat_BChw of no tokens: zeros."""
        return self.quantizer.codebook.weight.new_zeros(batch, self.code_dim, *self.scales[-1])

    def accumulate(self, f_hat_BChw: Tensor, k: int, h_BlC: Tensor) -> Tensor:
        """f_hat_BChw with the codes of scale k added."""
        return self.quantizer.accumulate(f_hat_BChw, k, h_BlC)

    def decode(self, f_hat_BChw: Tensor, *, compile: bool = False) -> Tensor:
        """f_hat_BChw → img_B3HW in [-1, 1]. compile: by ``torch.compile``, which is for GPUs."""
        with hardware_precision(f_hat_BChw):
            z_BZhw = self.post_quant_conv(f_hat_BChw)
        pixels = math.prod(z_BZhw.shape[2:]) * self.downsample**2
        return infer(self.decoder, z_BZhw, pixels=pixels, compile=compile).clamp(-1, 1)

    def revive(self, dead_V: Tensor, candidates_NC: Tensor, stream: Stream) -> int:
        """Replace dead codes; returns how many. See ``Codebook.revive``."""
        return self.quantizer.revive(dead_V, candidates_NC, stream)

    def enlarged(self, grid: tuple[int, int]) -> VQTokenizer:
        """A copy of a single-scale tokenizer for images of another size; the weights do not depend on it."""
        if len(self.scales) != 1:
            raise VarlabError(
                f"A tokenizer with the scales {list(self.scales)} has one image size: use one with a single scale."
            )
        large = copy.deepcopy(self)
        large.scales = large.quantizer.scales = (grid,)
        return large


def _xavier(module: nn.Module, *, gain: float) -> None:
    if isinstance(module, nn.Conv2d):
        nn.init.xavier_normal_(module.weight, gain=gain)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def grid_of(tokenizer: Tokenizer, size: tuple[int, int]) -> tuple[int, int]:
    """The token grid (h, w) for images of size (H, W)."""
    cell = tokenizer.downsample
    if size[0] % cell or size[1] % cell:
        raise VarlabError(f"A size of {size[0]}×{size[1]} pixels is no multiple of {cell}×{cell}: use whole tokens.")
    return size[0] // cell, size[1] // cell
