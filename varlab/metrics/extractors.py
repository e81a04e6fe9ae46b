"""Extractors: images to features and logits. Scores are comparable only under the same extractor and weights."""

from __future__ import annotations

import logging
from abc import abstractmethod
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from varlab.errors import VarlabError
from varlab.files import require_writable, sha256
from varlab.metrics.classifier import Classifier
from varlab.metrics.held_out_accuracy import HeldOutAccuracy
from varlab.types import full_precision, to_float

log = logging.getLogger(__name__)

_PUBLISHED = "6726825d"  # the beginning of the SHA-256 of Inception's weights, also in their file's name


class Extractor(nn.Module):
    """A frozen network: img_u8_B3HW → (features_BF, logits_BK of its own classes), both float32 under any autocast.

    name, hash (SHA-256 of the weights) and resize (how images are resized for the network) belong to every protocol.
    num_classes: None if its classes are not those of the data, so that samples have no class accuracy. knows_content:
    whether its classes are of what images show, so that there is an Inception score. held_out: of a classifier of the data.
    num_spatial: of its features at places, for sFID; None if it has none. Raises VarlabError for images that are not uint8.
    """

    name: str
    resize: str
    hash: str
    num_features: int
    num_classes: int | None
    num_spatial: int | None = None
    knows_content: bool = True
    held_out: HeldOutAccuracy | None = None

    @torch.no_grad()
    def forward(self, img_u8_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """features_BF, logits_BK."""
        if img_u8_B3HW.dtype != torch.uint8:
            raise VarlabError(f"An extractor takes uint8 images, rounded once for all scores, not {img_u8_B3HW.dtype}.")
        with full_precision(img_u8_B3HW):
            return self.extract(img_u8_B3HW)

    def outputs(self, img_u8_B3HW: Tensor) -> dict[str, Tensor]:
        """features_BF and logits_BK by name, and spatial_BS where ``num_spatial`` says so, from one pass."""
        features_BF, logits_BK = self(img_u8_B3HW)
        return {"features_BF": features_BF, "logits_BK": logits_BK}

    @abstractmethod
    def extract(self, img_u8_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """features_BF, logits_BK."""


class ClassifierExtractor(Extractor):
    """A classifier of the data: its pooled features and its logits.

    hash: SHA-256 of its weights. held_out: what it predicts, and how well. Logits of anything but labels, and of a single
    class, give no class accuracy and no Inception score.
    """

    name = "classifier"
    resize = "none"

    def __init__(self, *, classifier: Classifier, hash: str, held_out: HeldOutAccuracy | None = None):
        super().__init__()
        self.classifier, self.hash = classifier.eval().requires_grad_(False), hash
        self.held_out = held_out or HeldOutAccuracy()
        self.knows_content = self.held_out.predicts == "labels" and classifier.num_classes > 1
        self.num_features = classifier.num_features
        self.num_classes = classifier.num_classes if self.knows_content else None

    def extract(self, img_u8_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """One pass for both."""
        f_BF = self.classifier.features(to_float(img_u8_B3HW))
        return f_BF, self.classifier.logits(f_BF)


class InceptionExtractor(Extractor):
    """torch-fidelity's Inception-v3, the port of the TF-1 network that FID was defined with.

    2048 pooled features (FID, precision, recall) and the 1008 logits without bias in TF's numbering (Inception score). The
    network itself resizes to 299 pixels (TF-1 bilinear). Its spatial features are those of sFID: the first 7 channels of the
    third of the four 17 × 17 blocks' 1 × 1 branch (``mixed_6/conv`` of the ADM suite), place by place. weights: path of
    ``weights-inception-2015-12-05-6726825d.pth``, or None to download it. Raises VarlabError if the file is missing and
    cannot be downloaded, or does not hold these weights.
    """

    name = "inception"
    resize = "tf1-bilinear-299"
    num_features = 2048
    num_spatial = 7 * 17 * 17
    num_classes = None

    def __init__(self, *, weights: str | None):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        super().__init__()
        path = _inception_file(weights)
        try:
            # torch-fidelity unpickles without restriction, so it must get only a file known to hold plain tensors
            torch.load(path, map_location="cpu", weights_only=True)
            net = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], str(path))
        except Exception as error:  # a damaged pickle may raise anything
            raise VarlabError(f"{path} does not hold torch-fidelity's Inception weights: give another file.") from error
        self.net, self.hash = cast(nn.Module, net), sha256(path)
        if weights is not None and not self.hash.startswith(_PUBLISHED):
            log.warning(
                "%s is not the published file (its SHA-256 begins with %s, not %s): scores in these features compare only with "
                "each other",
                path,
                self.hash[:8],
                _PUBLISHED,
            )

    def extract(self, img_u8_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """One pass for both."""
        f_BF, logits_BK = self.net(img_u8_B3HW)
        return f_BF, logits_BK

    def outputs(self, img_u8_B3HW: Tensor) -> dict[str, Tensor]:
        """Those of every extractor, and spatial_BS."""
        kept: list[Tensor] = []
        branch = self.net.get_submodule("Mixed_6d.branch1x1")
        hook = branch.register_forward_hook(lambda module, inputs, output: kept.append(output))
        try:
            known = super().outputs(img_u8_B3HW)
        finally:
            hook.remove()
        return known | {"spatial_BS": kept[0][:, :7].permute(0, 2, 3, 1).flatten(1)}


def _inception_file(weights: str | None) -> Path:
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    if weights is not None:
        if not Path(weights).is_file():
            raise VarlabError(
                f"There are no Inception weights at {weights}: give the path of {Path(URL_INCEPTION_V3).name}."
            )
        return Path(weights)
    path = Path(torch.hub.get_dir(), "checkpoints", Path(URL_INCEPTION_V3).name)
    if path.exists() and not sha256(path).startswith(_PUBLISHED):
        raise VarlabError(
            f"{path} is damaged, or another file (its SHA-256 does not begin with {_PUBLISHED}): remove it to download it "
            "again, or give extractor.weights=PATH."
        )
    if not path.exists():
        require_writable(
            path.parent, "name a folder that can be written with TORCH_HOME=FOLDER, or give extractor.weights=PATH"
        )
        try:
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix=_PUBLISHED, progress=False)
        except (OSError, RuntimeError) as error:
            raise VarlabError(
                f"Could not download {URL_INCEPTION_V3} ({error}): fetch it elsewhere and put it at {path}, or give "
                "extractor.weights=PATH."
            ) from error
    return path
