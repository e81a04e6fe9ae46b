"""Feature spaces of networks from timm (DINOv2-style ViT, CLIP, ConvNeXt), by the folder of their weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol, cast

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from varlab.config import Config
from varlab.errors import VarlabError
from varlab.files import sha256
from varlab.json_file import read_json
from varlab.metrics.extractors import Extractor
from varlab.rng import Rng

__all__ = ["CONFIG", "TimmExtractor"]

CONFIG, WEIGHTS = "config.json", "model.safetensors"
_ARGUMENTS = (
    "img_size",
    "patch_size",
    "global_pool",
    "init_values",
    "dynamic_img_size",
    "embed_dim",
    "depth",
    "num_heads",
)
"""What a folder may ask of a network; other arguments could name files to be read."""


class _Network(Protocol):
    """The part of timm's models that gives features. head_hidden_size: their number."""

    head_hidden_size: int

    def forward_features(self, x_B3HW: Tensor) -> Tensor: ...
    def forward_head(self, x: Tensor, *, pre_logits: bool) -> Tensor: ...


class TimmExtractor(Extractor):
    """A network of timm: its pooled features before the classifier. It has no logits, so there is no Inception score.

    folder: ``config.json`` (architecture, input size, mean and deviation) and ``model.safetensors``, as the Hugging Face hub
    has them. The whole image is resized to the network's input (bicubic with antialiasing unless the file says bilinear; no
    crop). Raises VarlabError where timm is not installed, and for a folder that is not of this form.
    """

    num_classes = None
    knows_content = False

    mean_311: Tensor
    std_311: Tensor

    def __init__(self, *, folder: str):
        super().__init__()
        path = Path(folder)
        config = _read_config(path / CONFIG)
        prepared = config.get("pretrained_cfg", config)
        try:
            self.name = str(config["architecture"])
            self._size = tuple(int(side) for side in prepared["input_size"][-2:])
            self._mode = "bilinear" if prepared.get("interpolation") == "bilinear" else "bicubic"
            for name in ("mean", "std"):
                self.register_buffer(f"{name}_311", torch.tensor(prepared[name]).float().view(3, 1, 1))
            self.net = _network(self.name, config).eval().requires_grad_(False)
            self.net.load_state_dict(load_file(path / WEIGHTS))
        except VarlabError:
            raise
        except Exception as error:  # of timm, of a damaged file, of other shapes
            said = " ".join(str(error).split())[:200]
            raise VarlabError(
                f"{path} holds no network of timm ({said}): give a folder with its {CONFIG} and {WEIGHTS}."
            ) from error
        self.resize = f"{self._mode}-{'x'.join(map(str, self._size))}"
        self.hash = sha256(path / WEIGHTS)
        self.num_features = cast(_Network, self.net).head_hidden_size

    def extract(self, img_u8_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """features_BF, and one logit that says nothing."""
        x_B3HW = img_u8_B3HW.float() / 255
        x_B3HW = interpolate(x_B3HW, size=self._size, mode=self._mode, antialias=True).clamp(0, 1)
        net = cast(_Network, self.net)
        f_BF = net.forward_head(net.forward_features((x_B3HW - self.mean_311) / self.std_311), pre_logits=True)
        return f_BF, f_BF.new_zeros(len(f_BF), 1)


def _read_config(path: Path) -> Config:
    if not path.is_file():
        raise VarlabError(f"There is no {path}: give the folder of a network of timm, with its {CONFIG} and {WEIGHTS}.")
    content = read_json(path)
    if not isinstance(content, dict):
        raise VarlabError(f"{path} is not a JSON object: give the folder of a network of timm.")
    return content


def _network(architecture: str, config: Mapping[str, object]) -> nn.Module:
    try:
        import timm
    except ImportError as error:
        raise VarlabError("extractor=timm needs the package timm: pip install varlab[timm].") from error
    if not timm.is_model(architecture):
        raise VarlabError(f"timm {timm.__version__} knows no architecture {architecture}: install a later one.")
    asked = config.get("model_args")
    arguments = {key: value for key, value in asked.items() if key in _ARGUMENTS} if isinstance(asked, dict) else {}
    with Rng(0).scope("init/extractor"):  # the weights are replaced
        net = timm.create_model(architecture, pretrained=False, num_classes=config.get("num_classes"), **arguments)
    return cast(nn.Module, net)
