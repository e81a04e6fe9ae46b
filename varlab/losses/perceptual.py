"""Perceptual distances: LPIPS on VGG16, and the same distance on the maps of a small classifier.

Both follow Zhang et al. 2018, "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric", eq. 1:
d(x, y) = sum over layers of mean over places of sum over channels of w * (unit(f(x)) - unit(f(y)))^2.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from varlab.errors import VarlabError
from varlab.losses.weights import as_constants, fetch_weights, read_state
from varlab.types import full_precision, image_layout

_EPS = 1e-8  # inside the square root, so that the gradient of a zero vector's length is zero, not NaN
_CACHED = 2**20  # numbers of a map that are worked on at a time, so that they stay in a CPU's cache
_VGG_TAPS = (3, 8, 15, 22, 29)  # relu1_2, relu2_2, relu3_3, relu4_3, relu5_3 in torchvision's vgg16.features
_VGG_SMALLEST = 16  # pixels; four poolings come before relu5


class FeatureNet(Protocol):
    """A network for a perceptual distance: an ``nn.Module`` that returns the maps of its layers."""

    def feature_maps(self, img_B3HW: Tensor) -> list[Tensor]: ...


def _unit(f_NC: Tensor) -> tuple[Tensor, Tensor]:
    """Each row normalized to length one, and its length; in float32."""
    f_NC = f_NC.float()
    length_N1 = f_NC.square().sum(1, keepdim=True).add_(_EPS).sqrt_()
    return f_NC / length_N1, length_N1


class _MapDistance(torch.autograd.Function):
    """d_B between two maps, in float32. Its gradients are made at once, so that nothing else is kept for them."""

    @staticmethod
    def forward(ctx: Any, fx_BCHW: Tensor, fy_BCHW: Tensor, weight_C: Tensor) -> Tensor:
        B, C, H, W = fx_BCHW.shape
        x_NC, y_NC = (f.permute(0, 2, 3, 1).reshape(-1, C) for f in (fx_BCHW, fy_BCHW))
        grads = [
            torch.empty_like(f) if needed else None
            for f, needed in zip((x_NC, y_NC), ctx.needs_input_grad[:2], strict=True)
        ]
        distances = []
        for rows in torch.arange(len(x_NC)).split(_CACHED // C if x_NC.device.type == "cpu" else len(x_NC)):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            units = _unit(x_NC[part]), _unit(y_NC[part])
            change = units[0][0] - units[1][0]
            weighted = change * weight_C
            distances.append(change.mul_(weighted).sum(1))
            for (unit, length), grad_NC, sign in zip(units, grads, (2, -2), strict=True):
                if grad_NC is not None:
                    along = torch.mul(unit, weighted, out=change).sum(1, keepdim=True)
                    grad_NC[part] = torch.sub(weighted, unit.mul_(along), out=change).mul_(sign / (H * W) / length)
        ctx.save_for_backward(*(g if g is None else g.view(B, H, W, C).permute(0, 3, 1, 2) for g in grads))
        return torch.cat(distances).view(B, -1).mean(1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_B: Tensor) -> tuple[Tensor | None, ...]:
        grad_B111 = grad_B.view(-1, 1, 1, 1)
        return *(g if g is None else g * grad_B111.to(g.dtype) for g in ctx.saved_tensors), None


class PerceptualDistance(nn.Module):
    """How different two images look. hash: names a distance that no run trained in the protocol of scores; or None."""

    hash: str | None = None

    @abstractmethod
    def distance(self, x_B3HW: Tensor, y_B3HW: Tensor) -> Tensor:
        """d_B (float32, >= 0) for each pair of images in [-1, 1]; zero for equal images. In float32 also under autocast."""

    def forward(self, x_B3HW: Tensor, y_B3HW: Tensor) -> Tensor:
        """Mean distance over the batch: a scalar."""
        return self.distance(x_B3HW, y_B3HW).mean()


class FeatureDistance(PerceptualDistance):
    """The distance above, on the feature maps of any network.

    It has no parameters and an empty state dict, and stays in evaluation mode. ``distance`` computes in float32.
    weights: for each feature map a tensor (C,), or (1,) for equal channels. autocast: whether the network of the loss
    (``forward``) computes in the training's precision, as a wide network may; otherwise the loss is float32, too.
    """

    def __init__(self, *, net: FeatureNet, weights: Sequence[Tensor], autocast: bool | None):
        super().__init__()
        self.autocast = autocast
        self.net = as_constants(copy.deepcopy(cast(nn.Module, net)))
        self.count = len(weights)
        for i, weight_C in enumerate(weights):
            self.register_buffer(f"weight_{i}", weight_C.detach().float(), persistent=False)

    def train(self, mode: bool = True) -> FeatureDistance:
        """Stay in evaluation mode, so that the distance does not change during training."""
        return super().train(False)

    def _maps(self, img_B3HW: Tensor) -> list[Tensor]:
        maps = cast(FeatureNet, self.net).feature_maps(image_layout(img_B3HW.float()))
        if len(maps) != self.count:
            raise VarlabError(
                f"The perceptual network has {len(maps)} feature maps and {self.count} weights: give as many weights."
            )
        return maps

    def distance(self, x_B3HW: Tensor, y_B3HW: Tensor) -> Tensor:
        """d_B (float32, >= 0) for each pair of images in [-1, 1]; zero for equal images."""
        with full_precision(x_B3HW):
            return self._distance(x_B3HW, y_B3HW)

    def forward(self, x_B3HW: Tensor, y_B3HW: Tensor) -> Tensor:
        """Mean distance over the batch: a scalar."""
        return self._distance(x_B3HW, y_B3HW).mean() if self.autocast else super().forward(x_B3HW, y_B3HW)

    def _distance(self, x_B3HW: Tensor, y_B3HW: Tensor) -> Tensor:
        d_B = torch.zeros(x_B3HW.shape[0], device=x_B3HW.device)
        maps = zip(self._maps(x_B3HW), self._maps(y_B3HW), strict=True)
        for i, (fx_BCHW, fy_BCHW) in enumerate(maps):
            d_B = d_B + cast(Tensor, _MapDistance.apply(fx_BCHW, fy_BCHW, self.get_buffer(f"weight_{i}")))
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
    URLs, checked against a sha256 or a prefix of it. autocast: see ``FeatureDistance``. Raises VarlabError for a
    missing or wrong file.
    """

    hash = "LPIPS 0.1, VGG16"

    def __init__(
        self, *, vgg: str, vgg_sha256: str | None, lpips: str, lpips_sha256: str | None, autocast: bool | None = True
    ):
        linear, backbone = fetch_weights(lpips, lpips_sha256), fetch_weights(vgg, vgg_sha256)
        net = VGG16Features()
        state = read_state(backbone)
        try:
            net.load_state_dict({key: state[key] for key in net.state_dict()})
        except (KeyError, RuntimeError) as error:
            raise VarlabError(f"{backbone} does not hold the weights of torchvision's vgg16: {error}.") from error
        super().__init__(net=net, weights=self._linear_layers(linear), autocast=autocast)

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
    first. autocast: see ``FeatureDistance``.
    """

    def __init__(self, *, classifier: FeatureNet, weights: Sequence[float], autocast: bool | None = None):
        numbers = [torch.tensor([float(weight)]) for weight in weights]
        super().__init__(net=classifier, weights=numbers, autocast=autocast)
