"""A discriminator on frozen features: heads on the tokens of a DINO ViT (StyleGAN-T, Sauer et al. 2023; VAR's trainer)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from varlab.errors import VarlabError
from varlab.losses.weights import as_constants, fetch_weights, read_state

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, as for DINO


class ViTBlock(nn.Module):
    """A ViT's block with DINO's names. gelu: none (exact) or tanh."""

    def __init__(self, width: int, hidden: int, heads: int, gelu: str):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, hidden), "fc2": nn.Linear(hidden, width)})
        self.heads, self.gelu = heads, gelu

    def forward(self, x_BND: Tensor) -> Tensor:
        q, k, v = self.attn["qkv"](self.norm1(x_BND)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x_BND = x_BND + self.attn["proj"](F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x_BND + self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x_BND)), approximate=self.gelu))


class ViT(nn.Module):
    """DINO's ViT (Caron et al. 2021) with the sizes of an official state dict; only ``heads`` does not follow from it."""

    def __init__(self, state: dict[str, Tensor], *, heads: int, gelu: str, path: Path):
        super().__init__()
        needed = ("cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
        missing = [key for key in needed if key not in state]
        if missing:
            raise VarlabError(f"{path} does not hold the weights of a DINO ViT: {missing[0]} is missing.")
        width, patch = state["cls_token"].shape[-1], state["patch_embed.proj.weight"].shape[-1]
        hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
        depth = 1 + max(int(m[1]) for key in state if (m := re.match(r"blocks\.(\d+)\.", key)))
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.pos_embed = nn.Parameter(torch.empty(state["pos_embed"].shape))
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, stride=patch)})
        self.blocks = nn.ModuleList(ViTBlock(width, hidden, heads, gelu) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.width, self.patch = width, patch
        try:
            self.load_state_dict({key: state[key] for key in self.state_dict()})
        except (KeyError, RuntimeError) as error:
            raise VarlabError(f"{path} does not hold the weights of a DINO ViT: {error}.") from error

    def _positions(self, h: int, w: int) -> Tensor:
        """(1, 1 + h·w, D): the embedding of the class token, and those of the patches, resized to this grid."""
        side = round((self.pos_embed.shape[1] - 1) ** 0.5)
        grid = self.pos_embed[:, 1:].transpose(1, 2).unflatten(2, (side, side))
        if (h, w) != (side, side):
            grid = F.interpolate(grid, size=(h, w), mode="bicubic")
        return torch.cat([self.pos_embed[:, :1], grid.flatten(2).transpose(1, 2)], 1)

    def tokens(self, img_B3HW: Tensor, taps: Sequence[int]) -> list[Tensor]:
        """x_BND after each of the blocks in ``taps``, class token first, for images normalised like ImageNet.

        -1 in ``taps``: before all blocks, with the positions.
        """
        patches = self.patch_embed["proj"](img_B3HW)
        x = torch.cat([self.cls_token.expand(len(img_B3HW), -1, -1), patches.flatten(2).transpose(1, 2)], 1)
        x = x + self._positions(*patches.shape[2:])
        tapped = [x] if -1 in taps else []
        for i, block in enumerate(self.blocks):
            x = block(x)
            if i in taps:
                tapped.append(x)
        return tapped


class _SumOverRanks(torch.autograd.Function):
    """The sum over the ranks; so is its gradient."""

    @staticmethod
    def forward(ctx: object, tensor: Tensor) -> Tensor:
        tensor = tensor.clone()
        dist.all_reduce(tensor)
        return tensor

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        return _SumOverRanks.forward(ctx, grads[0])


class GlobalBatchNorm(nn.BatchNorm1d):
    """BatchNorm over the samples of all ranks, on any device."""

    mixes_batch = True

    def forward(self, x_BDN: Tensor) -> Tensor:
        world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
        if not self.training or world == 1:
            return super().forward(x_BDN)
        x = x_BDN.to(self.weight.dtype)
        sums = torch.cat([x.new_full((1,), x.shape[0] * x.shape[2]), x.sum((0, 2)), x.square().sum((0, 2))])
        count, total, squares = _SumOverRanks.apply(sums).split([1, x.shape[1], x.shape[1]])
        mean = total / count
        variance = (squares / count - mean.square()).clamp_min(0)
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        scale = self.weight * (variance + self.eps).rsqrt()
        return (x * scale[:, None] + (self.bias - mean * scale)[:, None]).to(x_BDN.dtype)


_NORMS: dict[str, Callable[[int], nn.Module]] = {
    "group": lambda width: nn.GroupNorm(8, width),
    "batch": lambda width: GlobalBatchNorm(width, eps=1e-6),
}


class Head(nn.Module):
    """x_BND → logits_BN: spectrally normalised convolutions over the tokens, with a norm. std: see ``DinoDiscriminator``."""

    def __init__(self, *, width: int, kernel: int, norm: str, std: float | None):
        super().__init__()
        wide = nn.Conv1d(width, width, kernel, padding=kernel // 2, padding_mode="circular")
        first, out = nn.Conv1d(width, width, 1), nn.Conv1d(width, 1, 1)
        if std is not None:
            for conv in (first, wide, out):
                conv.apply(partial(_truncated, std=std))
        self.first, self.second = spectral_norm(first), spectral_norm(wide)
        self.norm1, self.norm2 = _NORMS[norm](width), _NORMS[norm](width)
        self.out = spectral_norm(out)

    def forward(self, x_BND: Tensor) -> Tensor:
        h = F.leaky_relu(self.norm1(self.first(x_BND.transpose(1, 2))), 0.2)
        h = (h + F.leaky_relu(self.norm2(self.second(h)), 0.2)) / 2**0.5
        return self.out(h)[:, 0]


def _truncated(conv: nn.Module, *, std: float) -> None:
    for name, parameter in conv.named_parameters():
        if name == "bias":
            nn.init.zeros_(parameter)
        else:
            nn.init.trunc_normal_(parameter, std=std)


class DinoDiscriminator(nn.Module):
    """A logit for each token of each tapped block, for images in [-1, 1].

    weights: path or URL of the official DINO ViT-S/16 checkpoint. sha256: its hash, or a prefix. heads: of the ViT. taps:
    the blocks whose tokens are judged; -1 judges those before all blocks, too. size: height and width to which images of other
    sizes are resized. kernel: of the convolutions. readout: whether the class token is added to those of the patches, in place
    of a logit of its own. norm: group, or batch (over all ranks; not with gradient accumulation). std: of the heads' first
    weights, truncated normals with biases of 0 (None: as torch makes them). gelu: of the ViT, none (exact, as in DINO) or tanh.
    Only the discriminator's own heads are trained; the frozen ViT is in no optimizer and no checkpoint. Raises VarlabError
    for missing or wrong weights.
    """

    mean_311: Tensor
    std_311: Tensor

    def __init__(
        self,
        *,
        weights: str | None,
        sha256: str | None,
        heads: int,
        taps: Sequence[int],
        size: int,
        kernel: int,
        readout: bool | None = None,
        norm: str | None = None,
        std: float | None = None,
        gelu: str | None = None,
    ):
        super().__init__()
        if weights is None:
            raise VarlabError(
                "The DINO discriminator needs the weights of a ViT-S/16: give discriminator.weights=FILE, or a URL with "
                "discriminator.sha256=."
            )
        path = fetch_weights(weights, sha256)
        vit = ViT(read_state(path), heads=heads, gelu=gelu or "none", path=path)
        if not taps or max(taps) >= len(vit.blocks) or min(taps) < -1:
            raise VarlabError(
                f"discriminator.taps={list(taps)} must name some of the ViT's {len(vit.blocks)} blocks, from 0 "
                "(-1: before them)."
            )
        norm = norm or "group"
        if norm not in _NORMS:
            raise VarlabError(f"discriminator.norm is {norm!r}: use one of {', '.join(_NORMS)}.")
        self.taps, self.size, self.readout = tuple(sorted(taps)), size, bool(readout)
        self.heads = nn.ModuleList(Head(width=vit.width, kernel=kernel, norm=norm, std=std) for _ in taps)
        self.vit = as_constants(vit)
        self.register_buffer("mean_311", torch.tensor(_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std_311", torch.tensor(_STD).view(3, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> DinoDiscriminator:
        """Keep the frozen part in evaluation mode."""
        super().train(mode)
        self.vit.eval()
        return self

    def forward(self, img_B3HW: Tensor) -> Tensor:
        """logits_BN of all tapped blocks, concatenated."""
        tokens = self.frozen_forward(img_B3HW)
        if self.readout:
            tokens = [x_BND[:, 1:] + x_BND[:, :1] for x_BND in tokens]
        return torch.cat([head(x_BND) for head, x_BND in zip(self.heads, tokens, strict=True)], 1)

    def frozen_forward(self, img_B3HW: Tensor) -> list[Tensor]:
        """The tapped tokens; gradients reach the images, but nothing here is trained."""
        if img_B3HW.shape[2:] != (self.size, self.size):
            img_B3HW = F.interpolate(img_B3HW, size=(self.size, self.size), mode="bilinear", antialias=True)
        normal = ((img_B3HW + 1) / 2 - self.mean_311) / self.std_311
        tokens: list[Tensor] = self.vit.tokens(normal, self.taps)  # type: ignore[operator]
        return tokens
