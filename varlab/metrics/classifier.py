"""A small convolutional classifier: the judge of samples and, with another seed, the perceptual network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, relu

from varlab.errors import VarlabError
from varlab.processor import hardware_precision


class _ResidualBlock(nn.Module):
    """He et al. 2016, "Deep Residual Learning", with GroupNorm, which computes the same in training and evaluation."""

    def __init__(self, *, inputs: int, channels: int, groups: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, channels, 3, padding=1, bias=False)
        self.norm1 = nn.GroupNorm(groups, channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, channels)
        self.skip = nn.Identity() if inputs == channels else nn.Conv2d(inputs, channels, 1, bias=False)

    def forward(self, x_BCHW: Tensor) -> Tensor:
        h_BCHW = relu(self.norm1(self.conv1(x_BCHW)))
        return relu(self.skip(x_BCHW) + self.norm2(self.conv2(h_BCHW)))


class Classifier(nn.Module):
    """Stages of residual blocks, each at half the resolution of the one before, then mean pooling and a linear layer.

    channels: of each stage, finest first (the last is the number of features). blocks: per stage. groups: of GroupNorm,
    a divisor of all channels. Images of any size from 2^(stages - 1) pixels, float in [-1, 1].
    Raises VarlabError if the groups do not divide the channels.
    """

    def __init__(self, *, channels: Sequence[int], blocks: int, groups: int, num_classes: int):
        super().__init__()
        if any(c % groups for c in channels):
            raise VarlabError(
                f"classifier.groups={groups} does not divide all of classifier.channels={list(channels)}."
            )
        self.num_features, self.num_classes = channels[-1], num_classes
        stages, before = [], 3
        for width in channels:
            inputs = [before] + [width] * (blocks - 1)
            stages.append(nn.Sequential(*(_ResidualBlock(inputs=i, channels=width, groups=groups) for i in inputs)))
            before = width
        self.stages = nn.ModuleList(stages)
        self.head = nn.Linear(self.num_features, num_classes)

    def feature_maps(self, img_B3HW: Tensor) -> list[Tensor]:
        """The output of every stage, BCHW >= 0, finest first."""
        x_BCHW, maps = img_B3HW, []
        with hardware_precision(img_B3HW):
            for k, stage in enumerate(self.stages):
                x_BCHW = stage(x_BCHW if k == 0 else avg_pool2d(x_BCHW, 2))
                maps.append(x_BCHW)
        return maps

    def features(self, img_B3HW: Tensor) -> Tensor:
        """f_BF, the mean-pooled output of the last stage: the features of FID, precision and recall."""
        return self.feature_maps(img_B3HW)[-1].mean((2, 3))

    def logits(self, f_BF: Tensor) -> Tensor:
        """logits_BK of features, so that one pass gives both."""
        with hardware_precision(f_BF):
            return self.head(f_BF)

    def forward(self, img_B3HW: Tensor) -> Tensor:
        """logits_BK, one per class."""
        return self.logits(self.features(img_B3HW))
