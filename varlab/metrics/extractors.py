"""From images to features and logits: what scores are computed from, comparable only under one extractor and hash."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from varlab.errors import VarlabError
from varlab.metrics.classifier import Classifier
from varlab.types import full_precision, to_float


class Extractor(Protocol):
    """uint8 images to features, and to logits of its own classes."""

    @property
    def name(self) -> str: ...
    @property
    def hash(self) -> str: ...  # sha256 of the weights
    @property
    def resize(self) -> str: ...  # how images are brought to the network's size
    @property
    def num_features(self) -> int: ...
    @property
    def num_classes(self) -> int | None: ...  # None: its classes are not the data's, so class accuracy cannot be told

    def __call__(self, img_u8_B3HW: Tensor) -> tuple[Tensor, Tensor]: ...  # features_BF, logits_BK, both float32
    def to(self, device: torch.device | str) -> Extractor: ...


def _checked(img_u8_B3HW: Tensor) -> Tensor:
    if img_u8_B3HW.dtype != torch.uint8:
        raise VarlabError(f"an extractor takes uint8 images, rounded once for all scores, and got {img_u8_B3HW.dtype}.")
    return img_u8_B3HW


class ClassifierExtractor:
    """A classifier of the data at hand: its pooled features, its logits.

    classifier: frozen and put in evaluation mode here. hash: sha256 of its weights.
    Raises VarlabError for images that are not uint8.
    """

    name = "classifier"
    resize = "none"

    def __init__(self, *, classifier: Classifier, hash: str):
        self._net = classifier.eval().requires_grad_(False)
        self.hash = hash
        self.num_features, self.num_classes = classifier.num_features, classifier.num_classes

    def to(self, device: torch.device | str) -> ClassifierExtractor:
        """Moves the network; returns itself."""
        self._net.to(device)
        return self

    @torch.no_grad()
    def __call__(self, img_u8_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """features_BF, logits_BK, float32 under any autocast."""
        with full_precision(img_u8_B3HW):
            f_BF = self._net.features(to_float(_checked(img_u8_B3HW)))
            return f_BF, self._net.logits(f_BF)


class InceptionExtractor:
    """torch-fidelity's Inception-v3, the port of the TF-1 network that FID was defined with.

    2048 pooled features (FID, precision, recall) and the 1008 logits without bias (Inception score). The TF-1 bilinear
    resize to 299 pixels is the network's own: none comes before it. weights: path of
    ``weights-inception-2015-12-05-6726825d.pth``, or None for torch-fidelity's download. Raises VarlabError where there
    is neither a file nor a network, for a file that is something else, and for images that are not uint8.
    """

    name = "inception"
    resize = "tf1-bilinear-299"
    num_features = 2048
    num_classes = None

    def __init__(self, *, weights: str | None):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        path = _inception_file(weights)
        try:
            # torch-fidelity unpickles without restriction: only a file known to be mere tensors gets there
            torch.load(path, map_location="cpu", weights_only=True)
            net = FeatureExtractorInceptionV3("inception-v3-compat", ["2048", "logits_unbiased"], str(path))
        except Exception as error:  # a damaged pickle may raise anything
            raise VarlabError(f"{path} does not hold torch-fidelity's Inception weights: give another file.") from error
        self._net = cast(nn.Module, net)
        with path.open("rb") as file:
            self.hash = hashlib.file_digest(file, "sha256").hexdigest()

    def to(self, device: torch.device | str) -> InceptionExtractor:
        """Moves the network; returns itself."""
        self._net.to(device)
        return self

    @torch.no_grad()
    def __call__(self, img_u8_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """features_BF, logits_BK (K = 1008, TF's numbering), float32 under any autocast."""
        with full_precision(img_u8_B3HW):
            f_BF, logits_BK = self._net(_checked(img_u8_B3HW))
        return f_BF, logits_BK


def _inception_file(weights: str | None) -> Path:
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    if weights is not None:
        if not Path(weights).is_file():
            raise VarlabError(
                f"there are no Inception weights at {weights}: give the path of {Path(URL_INCEPTION_V3).name}."
            )
        return Path(weights)
    path = Path(torch.hub.get_dir(), "checkpoints", Path(URL_INCEPTION_V3).name)
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), hash_prefix="6726825d", progress=False)
        except (OSError, RuntimeError) as error:
            raise VarlabError(
                f"cannot download {URL_INCEPTION_V3} ({error}): fetch it elsewhere and give extractor.weights=PATH."
            ) from error
    return path
