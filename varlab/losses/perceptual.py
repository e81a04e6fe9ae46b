"""Perceptual distances: LPIPS on VGG16, and the same distance on the maps of a small classifier.

Both follow Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", eq. 1:
d(x, y) = sum over layers of mean over places of sum over channels of w * (unit(f(x)) - unit(f(y)))^2.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from varlab.errors import VarlabError
from varlab.losses.weights import as_constants, fetch_weights, read_state
from varlab.types import full_precision

_EPS = 1e-8  # inside the square root, so that the gradient of a zero vector's length is zero, not NaN
_VGG_TAPS = (3, 8, 15, 22, 29)  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3 in torchvision's vgg16.features
_VGG_SMALLEST = 16  # pixels; four poolings come before relu5


class FeatureNet(Protocol):
    """A network for a perceptual distance: an ``nn.Module`` that returns the maps of its layers."""

    def feature_maps(self, img_B3HW: Tensor) -> list[Tensor]: ...


def _unit(f_BCHW: Tensor) -> Tensor:
    """Normalize the channel vector of every position to length one."""
    return f_BCHW / f_BCHW.square().sum(1, keepdim=True).add(_EPS).sqrt()


class PerceptualDistance(nn.Module):
    """How different two images look. hash: names a distance that no run trained in the protocol of scores; or None."""

    hash: str | None = None

    @abstractmethod
    def distance(self, x_B3HW: Tensor, y_B3HW: Tensor) -> Tensor:
        """d_B (float32, >= 0) for each pair of images in [-1, 1]; zero for equal images."""

    def forward(self, x_B3HW: Tensor, y_B3HW: Tensor) -> Tensor:
        """Mean distance over the batch: a scalar."""
        return self.distance(x_B3HW, y_B3HW).mean()


class FeatureDistance(PerceptualDistance):
    """The distance above, on the feature maps of any network.

    It has no parameters and an empty state dict, stays in evaluation mode, and computes in float32 under autocast.
    weights: for each feature map a tensor (C,), or (1,) for equal channels.
    """

    def __init__(self, *, net: FeatureNet, weights: Sequence[Tensor]):
        super().__init__()
        self.net = as_constants(copy.deepcopy(cast(nn.Module, net)))
        self.count = len(weights)
        for i, weight_C in enumerate(weights):
            self.register_buffer(f"weight_{i}", weight_C.detach().float().view(-1, 1, 1), persistent=False)

    def train(self, mode: bool = True) -> FeatureDistance:
        """Stay in evaluation mode, so that the distance does not change during training."""
        return super().train(False)

    def _maps(self, img_B3HW: Tensor) -> list[Tensor]:
        maps = cast(FeatureNet, self.net).feature_maps(img_B3HW.float())
        if len(maps) != self.count:
            raise VarlabError(
                f"The perceptual network has {len(maps)} feature maps and {self.count} weights: give as many weights."
            )
        return maps

    def distance(self, x_B3HW: Tensor, y_B3HW: Tensor) -> Tensor:
        """d_B (float32, >= 0) for each pair of images in [-1, 1]; zero for equal images."""
        with full_precision(x_B3HW):
            d_B = torch.zeros(x_B3HW.shape[0], device=x_B3HW.device)
            pairs = zip(self._maps(x_B3HW), self._maps(y_B3HW), strict=True)
            for i, (fx_BCHW, fy_BCHW) in enumerate(pairs):
                squared_BCHW = (_unit(fx_BCHW) - _unit(fy_BCHW)).square()
                d_B = d_B + (squared_BCHW * self.get_buffer(f"weight_{i}")).sum(1).mean((1, 2))
            return d_B


class VGG16Features(nn.Module):
    """torchvision's VGG16 up to relu5_3, from images in [-1, 1], with the input scaling of the LPIPS authors."""

    shift_311: Tensor
    scale_311: Tensor

    def __init__(self) -> None:
        super().__init__()
        from torchvision.models.vgg import cfgs, make_layers

        self.features = make_layers(cfgs["D"], batch_norm=False)[: _VGG_TAPS[-1] + 1]
        # ImageNet's mean and deviation, (.485 .456 .406) and (.229 .224 .225), converted from [0, 1] to [-1, 1]
        self.register_buffer("shift_311", torch.tensor([-0.030, -0.088, -0.188]).view(3, 1, 1), persistent=False)
        self.register_buffer("scale_311", torch.tensor([0.458, 0.448, 0.450]).view(3, 1, 1), persistent=False)

    def feature_maps(self, img_B3HW: Tensor) -> list[Tensor]:
        """Five maps, finest first. Raises VarlabError for images too small for four poolings."""
        if min(img_B3HW.shape[-2:]) < _VGG_SMALLEST:
            size = "x".join(str(n) for n in img_B3HW.shape[-2:])
            raise VarlabError(
                f"LPIPS needs images of at least {_VGG_SMALLEST} pixels, not {size}: use perceptual=classifier."
            )
        x, maps = (img_B3HW - self.shift_311) / self.scale_311, []
        for i, layer in enumerate(self.features):
            x = layer(x)
            if i in _VGG_TAPS:
                maps.append(x)
        return maps


class LPIPS(FeatureDistance):
    """LPIPS v0.1 with VGG16, the perceptual loss of VQGAN and VAR.

    vgg: torchvision's vgg16 weights. lpips: the authors' linear layers (``lpips/weights/v0.1/vgg.pth``). Both are paths or
    URLs, checked against a sha256 or a prefix of it. Raises VarlabError for a missing or wrong file.
    """

    hash = "LPIPS 0.1, VGG16"

    def __init__(self, *, vgg: str, vgg_sha256: str | None, lpips: str, lpips_sha256: str | None):
        linear, backbone = fetch_weights(lpips, lpips_sha256), fetch_weights(vgg, vgg_sha256)
        net = VGG16Features()
        state = read_state(backbone)
        try:
            net.load_state_dict({key: state[key] for key in net.state_dict()})
        except (KeyError, RuntimeError) as error:
            raise VarlabError(f"{backbone} does not hold the weights of torchvision's vgg16: {error}.") from error
        super().__init__(net=net, weights=self._linear_layers(linear))

    @staticmethod
    def _linear_layers(path: Path) -> list[Tensor]:
        state = read_state(path)
        try:
            return [state[f"lin{i}.model.1.weight"].flatten() for i in range(len(_VGG_TAPS))]
        except KeyError as error:
            raise VarlabError(f"{path} does not hold the linear layers of LPIPS: {error} is missing.") from error


class ClassifierPerceptual(FeatureDistance):
    """The same distance on a small classifier that was trained on the user's images: no download.

    classifier: an ``nn.Module`` with ``feature_maps``; it is copied. weights: a number >= 0 for each feature map, finest
    first.
    """

    def __init__(self, *, classifier: FeatureNet, weights: Sequence[float]):
        super().__init__(net=classifier, weights=[torch.tensor([float(weight)]) for weight in weights])
