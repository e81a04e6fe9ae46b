"""The tokenizer: encoder, quantizer, decoder. One class for VAR's multi-scale tokenizer and for the plain VQGAN."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from varlab.config import Config
from varlab.rng import Stream
from varlab.tokenizer.cnn import Decoder, Encoder
from varlab.tokenizer.quantizer import Quantizer
from varlab.types import Maps, Quantized


class VQTokenizer(nn.Module):
    """Pixels in [-1, 1] to token maps and back; implements ``varlab.types.Tokenizer``.

    channels × channel_mult are the widths of the stages (the last runs at the latent resolution, so the tokenizer
    downsamples by 2^(stages - 1)), those of the decoder where decoder_channel_mult gives it others; res_blocks per stage
    (one more in the decoder); z_channels between the CNNs and the quantizer's convolutions (null: code_dim, as in VAR);
    groups of the GroupNorms; attention: the stages that attend (0 the finest, -1 the lowest resolution); mid_attention: in
    the middle. The other values go to ``Quantizer``.
    """

    def __init__(
        self,
        *,
        scales: Sequence[Sequence[int]],
        vocab_size: int,
        code_dim: int,
        channels: int,
        channel_mult: Sequence[int],
        decoder_channel_mult: Sequence[int] | None,
        res_blocks: int,
        z_channels: int | None,
        groups: int,
        attention: Sequence[int],
        mid_attention: bool,
        quant_kernel: int,
        beta: float,
        beta_term: str,
        phi_count: int,
        phi_ratio: float,
        code_init: float,
        code_norm: bool,
        cosine: bool,
        entropy: Mapping[str, float] | None,
    ):
        super().__init__()
        self.vocab_size, self.code_dim = vocab_size, code_dim
        self.downsample = 2 ** (len(channel_mult) - 1)
        cnn: Config = dict(
            channels=channels,
            res_blocks=res_blocks,
            z_channels=code_dim if z_channels is None else z_channels,
            groups=groups,
            attention=attention,
            mid_attention=mid_attention,
        )
        self.encoder = Encoder(channel_mult=channel_mult, **cnn)
        self.quant_conv = nn.Conv2d(cnn["z_channels"], code_dim, quant_kernel, padding=quant_kernel // 2)
        self.quantizer = Quantizer(
            scales=scales,
            vocab_size=vocab_size,
            code_dim=code_dim,
            beta=beta,
            beta_term=beta_term,
            phi_count=phi_count,
            phi_ratio=phi_ratio,
            code_init=code_init,
            code_norm=code_norm,
            cosine=cosine,
            entropy=entropy,
        )
        self.post_quant_conv = nn.Conv2d(code_dim, cnn["z_channels"], quant_kernel, padding=quant_kernel // 2)
        self.decoder = Decoder(channel_mult=decoder_channel_mult or channel_mult, **cnn)
        self.scales = self.quantizer.scales

    @property
    def last_layer(self) -> Tensor:
        """The decoder's last convolution weight: where the adaptive λ compares gradients (VQGAN, eq. 7)."""
        return self.decoder.conv_out.weight

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) that the scales stand for."""
        h, w = self.scales[-1]
        return h * self.downsample, w * self.downsample

    def latents(self, img_B3HW: Tensor) -> Tensor:
        """f_BChw, what is quantized."""
        return self.quant_conv(self.encoder(img_B3HW))

    def quantize(self, f_BChw: Tensor) -> Quantized:
        """Token maps, f_hat with the straight-through gradient, the VQ loss and the counts of the codes."""
        return self.quantizer(f_BChw)

    def forward(self, img_B3HW: Tensor) -> tuple[Tensor, Quantized]:
        """Training: the reconstruction (not clamped: the loss wants its gradient) and what the quantizer did."""
        quantized = self.quantize(self.latents(img_B3HW))
        return self.decoder(self.post_quant_conv(quantized.f_hat_BChw)), quantized

    @torch.no_grad()
    def encode(self, img_B3HW: Tensor) -> Maps:
        """img_B3HW → token maps, one idx_Bl a scale."""
        return self.quantizer.encode(self.latents(img_B3HW))

    def embed(self, idx_Bl: Tensor) -> Tensor:
        """idx_Bl → h_BlC, the codes themselves (of length 1 where the codebook is a cosine one)."""
        return self.quantizer.codebook.embed(idx_Bl)

    def blank(self, batch: int) -> Tensor:
        """f_hat_BChw before anything was written: zeros."""
        return self.quantizer.codebook.weight.new_zeros(batch, self.code_dim, *self.scales[-1])

    def accumulate(self, f_hat_BChw: Tensor, k: int, h_BlC: Tensor) -> Tensor:
        """f_hat after scale k's codes were added."""
        return self.quantizer.accumulate(f_hat_BChw, k, h_BlC)

    def decode(self, f_hat_BChw: Tensor) -> Tensor:
        """f_hat_BChw → img_B3HW in [-1, 1]."""
        return self.decoder(self.post_quant_conv(f_hat_BChw)).clamp(-1, 1)

    def revive(self, dead_V: Tensor, candidates_NC: Tensor, stream: Stream) -> int:
        """Replace dead codes; returns how many. See ``Codebook.revive``."""
        return self.quantizer.revive(dead_V, candidates_NC, stream)
