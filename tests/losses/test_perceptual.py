"""Laws of the perceptual distances, and parity of LPIPS with torchmetrics' copy of the authors' code."""

from __future__ import annotations

import copy
import hashlib
from pathlib import Path

import pytest
import torch
import torchmetrics.functional.image.lpips as reference
from torch import nn

from tests.bounds import SAME, float64
from varlab.errors import VarlabError
from varlab.losses import perceptual
from varlab.losses.perceptual import LPIPS, ClassifierPerceptual
from varlab.losses.weights import fetch_weights, read_state
from varlab.rng import Rng

pytestmark = pytest.mark.numeric

LINEAR = (
    Path(reference.__file__).with_name("lpips_models") / "vgg.pth"
)  # the authors' own file, which torchmetrics carries
LINEAR_SHA256 = "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"


def images(name: str, size: int = 32, batch: int = 2) -> torch.Tensor:
    return Rng(0).stream(name, torch.arange(batch)).uniform(3, size, size) * 2 - 1


class TinyNet(nn.Module):
    """Two feature maps, one of them often exactly zero."""

    def __init__(self) -> None:
        super().__init__()
        with Rng(0).scope("init"):
            self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.norm = nn.BatchNorm2d(4)

    def feature_maps(self, img_B3HW: torch.Tensor) -> list[torch.Tensor]:
        a_BCHW = self.a(img_B3HW).relu()
        return [a_BCHW, self.norm(self.b(a_BCHW) - 1).relu()]


@pytest.fixture(scope="module")
def official() -> nn.Module:
    """The authors' code on a VGG16 of seeded random weights with their own linear layers."""
    with Rng(1).scope("init"):
        return reference._LPIPS(pretrained=True, net="vgg", pnet_rand=True).eval()


@pytest.fixture(scope="module")
def vgg_file(official: nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same weights as a file in torchvision's naming."""
    state = {key.replace(key.split(".")[0], "features", 1): value for key, value in official.net.state_dict().items()}
    path = tmp_path_factory.mktemp("weights") / "vgg16.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def lpips(vgg_file: Path) -> LPIPS:
    return LPIPS(vgg=str(vgg_file), vgg_sha256=None, lpips=str(LINEAR), lpips_sha256=LINEAR_SHA256)


def test_lpips_equals_the_authors_code(vgg_file: Path, official: nn.Module) -> None:
    x, y = images("x").double(), images("y").double()
    expected_B = copy.deepcopy(official).double()(x, y).flatten()
    assert expected_B.min() > 0
    with float64():
        lpips = LPIPS(vgg=str(vgg_file), vgg_sha256=None, lpips=str(LINEAR), lpips_sha256=LINEAR_SHA256)
        torch.testing.assert_close(lpips.distance(x, y), expected_B, rtol=SAME, atol=SAME)
        torch.testing.assert_close(lpips(x, y), expected_B.mean(), rtol=SAME, atol=SAME)


@pytest.mark.parametrize("kind", ["lpips", "classifier"])
def test_equal_images_have_no_distance_and_a_finite_gradient(kind: str, lpips: LPIPS) -> None:
    distance = lpips if kind == "lpips" else ClassifierPerceptual(classifier=TinyNet(), weights=[1.0, 1.0])
    for img in (images("x"), torch.zeros(2, 3, 32, 32)):
        x = img.clone().requires_grad_()
        d = distance(x, img)
        d.backward()
        assert d == 0 and x.grad is not None and x.grad.isfinite().all()


def test_the_gradient_at_a_dead_place_is_finite() -> None:
    """All-zero channel vectors are where an unguarded square root gives NaN."""
    net = TinyNet()
    nn.init.constant_(net.a.bias, -100)
    x = images("x").requires_grad_()
    ClassifierPerceptual(classifier=net, weights=[1.0, 1.0])(x, images("y")).backward()
    assert x.grad is not None and x.grad.isfinite().all()


def test_the_distance_is_the_formula() -> None:
    net, x, y = TinyNet().eval(), images("x"), images("y")
    expected_B = torch.zeros(2)
    for weight, fx, fy in zip([2.0, 0.5], net.feature_maps(x), net.feature_maps(y), strict=True):
        ux, uy = nn.functional.normalize(fx, eps=1e-4), nn.functional.normalize(fy, eps=1e-4)
        expected_B += weight * (ux - uy).square().sum(1).mean((1, 2))
    found_B = ClassifierPerceptual(classifier=net, weights=[2.0, 0.5]).distance(x, y)
    torch.testing.assert_close(found_B, expected_B, rtol=1e-3, atol=1e-4)


def test_nothing_of_it_trains_or_is_saved() -> None:
    net = TinyNet()
    distance = ClassifierPerceptual(classifier=net, weights=[1.0, 1.0])
    x, y = images("x"), images("y")
    before = distance(x, y)
    distance.train()
    distance(x, y)
    assert not list(distance.parameters()) and not distance.state_dict()
    assert torch.equal(distance(x, y), before), "BatchNorm's statistics moved"
    assert len(list(net.parameters())) == 6 and net.a.weight.requires_grad, "the classifier given was changed"
    assert next(distance.double().buffers()).dtype == torch.float64, "its weights don't move with it"


def test_float32_under_autocast() -> None:
    distance, x, y = ClassifierPerceptual(classifier=TinyNet(), weights=[1.0, 1.0]), images("x"), images("y")
    with torch.autocast("cpu", torch.bfloat16):
        found = distance.distance(x, y)
    assert torch.equal(found, distance.distance(x, y)) and found.dtype == torch.float32


def test_refusals_name_what_is_wrong(vgg_file: Path, lpips: LPIPS, tmp_path: Path) -> None:
    good = {"vgg": str(vgg_file), "vgg_sha256": None, "lpips": str(LINEAR), "lpips_sha256": LINEAR_SHA256}
    with pytest.raises(VarlabError, match=r"vgg\.pth is another file: its sha256 is a78928a0.*00ff"):
        LPIPS(**(good | {"lpips_sha256": "00ff"}))
    with pytest.raises(VarlabError, match=r"no weights at .*absent\.pth"):
        LPIPS(**(good | {"vgg": str(tmp_path / "absent.pth")}))
    with pytest.raises(VarlabError, match="does not hold the weights of torchvision's vgg16"):
        LPIPS(**(good | {"vgg": str(LINEAR)}))
    with pytest.raises(VarlabError, match=r"lin0\.model\.1\.weight"):
        LPIPS(**(good | {"lpips": str(vgg_file), "lpips_sha256": None}))
    with pytest.raises(VarlabError, match="8x8"):
        lpips(images("x", size=8), images("y", size=8))
    with pytest.raises(VarlabError, match="2 feature maps and 3 weights"):
        ClassifierPerceptual(classifier=TinyNet(), weights=[1.0, 1.0, 1.0])(images("x"), images("y"))


def test_a_download_is_checked_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A URL is fetched once, under a name that carries its hash; another file there is refused."""
    content = b"weights"
    sha256, calls = hashlib.sha256(content).hexdigest(), []

    def download(url: str, path: str, hash_prefix: str, progress: bool) -> None:
        calls.append((url, hash_prefix))
        Path(path).write_bytes(content)

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    url = "https://example.org/v0.1/vgg.pth"
    path = fetch_weights(url, sha256)
    assert fetch_weights(url, sha256) == path and calls == [(url, sha256)]
    assert path.name == f"{sha256[:8]}-vgg.pth"
    path.write_bytes(b"something else")
    with pytest.raises(VarlabError, match="is another file"):
        fetch_weights(url, sha256)
    with pytest.raises(VarlabError, match="need a sha256"):
        fetch_weights(url, None)


def test_no_network_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(VarlabError, match=r"Cannot download http://127\.0\.0\.1:9/vgg\.pth .* give its path"):
        fetch_weights("http://127.0.0.1:9/vgg.pth", LINEAR_SHA256)


def test_damaged_or_hostile_files_are_refused(tmp_path: Path) -> None:
    damaged, hostile, other = tmp_path / "a.pth", tmp_path / "b.pth", tmp_path / "c.pth"
    damaged.write_bytes(LINEAR.read_bytes()[:1000])
    torch.save({"code": nn.Linear}, hostile)
    torch.save([torch.ones(1)], other)
    for path in (damaged, hostile, other):
        with pytest.raises(VarlabError, match=path.name):
            read_state(path)


@pytest.mark.parametrize("autocast", [True, None])
def test_the_loss_has_the_precision_of_its_network(autocast: bool | None) -> None:
    """The distance that is reported is float32 in both."""
    distance = ClassifierPerceptual(classifier=TinyNet(), weights=[1.0, 1.0], autocast=autocast)
    x, y = images("x"), images("y")

    def loss_and_gradient() -> tuple[torch.Tensor, torch.Tensor]:
        leaf = x.clone().requires_grad_()
        loss = distance(leaf, y)
        return loss.detach(), *torch.autograd.grad(loss, leaf)

    exact, gradient = loss_and_gradient()
    with torch.autocast("cpu", torch.bfloat16):
        found, found_gradient = loss_and_gradient()
        assert torch.equal(distance.distance(x, y).mean(), exact)
    if not autocast:
        assert torch.equal(found, exact) and torch.equal(found_gradient, gradient)
        return
    assert found.dtype == torch.float32 and 0 < (found - exact).abs() <= 0.02 * exact
    # a map that is nearly zero has a gradient without bounds, so its direction is compared
    assert torch.cosine_similarity(found_gradient.flatten(), gradient.flatten(), 0) >= 0.7


def test_the_gradient_is_that_of_the_distance(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceptual, "_CACHED", 40)  # several parts an image
    with float64():
        distance = ClassifierPerceptual(classifier=TinyNet(), weights=[1.0, 0.5])
        x, y = images("x", 8, 1).double().requires_grad_(), images("y", 8, 1).double()
        assert torch.autograd.gradcheck(distance.distance, (x, y.requires_grad_()))
