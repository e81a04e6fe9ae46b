"""Networks of timm as extractors, with random weights; skipped where timm is not installed."""

from __future__ import annotations

import builtins
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.nn.functional import interpolate

from varlab.errors import VarlabError
from varlab.files import sha256
from varlab.metrics.timm_extractor import TimmExtractor
from varlab.recipe.sample_file.feature_spaces import feature_spaces
from varlab.rng import Rng

PREPARED = {"input_size": [3, 64, 64], "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.3, 0.4], "interpolation": "bicubic"}


def images(batch: int = 2) -> torch.Tensor:
    return Rng(0).stream("x", torch.arange(batch)).integers(256, 3, 16, 16).to(torch.uint8)


def write_folder(folder: Path, architecture: str, **changes: object) -> torch.nn.Module:
    """A folder as the hub has it, of a network with random weights; returns the network."""
    timm = pytest.importorskip("timm")
    arguments = {"img_size": 64} if "vit" in architecture else {}
    net = timm.create_model(architecture, num_classes=3, **arguments).eval()
    folder.mkdir()
    save_file(net.state_dict(), folder / "model.safetensors")
    config = {"architecture": architecture, "num_classes": 3, "model_args": arguments, "pretrained_cfg": PREPARED}
    (folder / "config.json").write_text(json.dumps(config | changes))
    return net


@pytest.mark.parametrize("architecture", ["test_vit", "test_convnext"])
def test_features_are_those_of_the_network_before_its_classifier(architecture: str, tmp_path: Path) -> None:
    net, img = write_folder(tmp_path / "net", architecture), images()
    extract = TimmExtractor(folder=str(tmp_path / "net"))
    x = interpolate(img.float() / 255, size=(64, 64), mode="bicubic", antialias=True).clamp(0, 1)
    x = (x - torch.tensor(PREPARED["mean"])[:, None, None]) / torch.tensor(PREPARED["std"])[:, None, None]
    f_BF, logits_BK = extract(img)
    assert torch.allclose(f_BF, net.forward_head(net.forward_features(x), pre_logits=True), atol=1e-6)
    assert f_BF.shape == (2, extract.num_features) and logits_BK.shape == (2, 1)
    torch.testing.assert_close(net.get_classifier()(f_BF), net(x))
    assert extract.resize == "bicubic-64x64" and extract.name == architecture
    assert extract.hash == sha256(tmp_path / "net" / "model.safetensors") and not extract.net.training


def test_a_folder_is_a_feature_space(tmp_path: Path) -> None:
    write_folder(tmp_path / "net", "test_convnext")
    [(name, space)] = feature_spaces({"spaces": [str(tmp_path / "net")]}, None, tmp_path).items()
    assert name == f"test_convnext-{space.hash[:8]}" and isinstance(space, TimmExtractor)


def test_a_folder_asks_for_no_other_file(tmp_path: Path) -> None:
    """Arguments that would make timm read another checkpoint, or a name that is a place, are not passed on."""
    asked = {"checkpoint_path": "/elsewhere.pth", "pretrained": True}
    write_folder(tmp_path / "net", "test_convnext", model_args=asked)
    TimmExtractor(folder=str(tmp_path / "net"))
    (tmp_path / "net" / "config.json").write_text(json.dumps({"architecture": "hf-hub:a/b", **PREPARED}))
    with pytest.raises(VarlabError, match="knows no architecture hf-hub:a/b"):
        TimmExtractor(folder=str(tmp_path / "net"))


def test_a_folder_of_another_network_is_a_sentence(tmp_path: Path) -> None:
    write_folder(tmp_path / "net", "test_convnext")
    (tmp_path / "net" / "config.json").write_text(json.dumps({"architecture": "test_vit", **PREPARED}))
    with pytest.raises(VarlabError, match="holds no network of timm"):
        TimmExtractor(folder=str(tmp_path / "net"))
    with pytest.raises(VarlabError, match=r"There is no .*config\.json"):
        TimmExtractor(folder=str(tmp_path))


def test_without_timm_there_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"architecture": "test_vit", "pretrained_cfg": PREPARED}))
    real = builtins.__import__

    def absent(name: str, *arguments: object, **more: object) -> object:
        if name == "timm":
            raise ImportError(name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(VarlabError, match=r"needs the package timm: pip install varlab\[timm\]"):
        TimmExtractor(folder=str(tmp_path))
