"""The classifier learns, and extractors give the features and logits of their networks, in float32, from uint8."""

from __future__ import annotations

import hashlib
from pathlib import Path

import hydra
import pytest
import torch
from omegaconf import OmegaConf
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.nn.functional import cross_entropy, interpolate

from tests.bounds import SAME
from varlab.errors import VarlabError
from varlab.losses.perceptual import ClassifierPerceptual
from varlab.metrics.classifier import Classifier
from varlab.metrics.extractors import ClassifierExtractor, Extractor, InceptionExtractor
from varlab.rng import Rng
from varlab.types import to_float

pytestmark = pytest.mark.numeric

CONF = Path(__file__).parents[2] / "conf"


def classifier() -> Classifier:
    with Rng(0).scope("init"):
        return hydra.utils.instantiate(OmegaConf.load(CONF / "classifier" / "small.yaml"), num_classes=10)


def images(size: int, batch: int = 2) -> torch.Tensor:
    return Rng(0).stream("sample", torch.arange(batch)).integers(256, 3, size, size).to(torch.uint8)


@pytest.mark.slow
def test_the_small_classifier_reads_digits() -> None:
    """98.5% of 360 held-out digits at 16 pixels, after 12 epochs: what a judge of samples is worth.

    Roundings decide which training this becomes; one of that worth misses 5.4 digits, give or take 2.3.
    """
    digits = load_digits()
    img = torch.tensor(digits.images / 8 - 1).float()[:, None].expand(-1, 3, -1, -1)
    img_B3HW, label_B = interpolate(img, (16, 16), mode="bicubic").clamp(-1, 1), torch.tensor(digits.target)
    train, val = train_test_split(torch.arange(len(label_B)), test_size=0.2, stratify=digits.target, random_state=0)
    net, batch, epochs = classifier(), 64, 12
    optimizer = torch.optim.AdamW(net.parameters(), 4e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, total_steps=epochs * (len(train) // batch))
    for epoch in range(epochs):
        shuffled = train[Rng(0).stream("order", step=epoch).permutation(len(train))[0]]
        for rows in shuffled.split(batch)[: len(train) // batch]:
            optimizer.zero_grad()
            cross_entropy(net(img_B3HW[rows]), label_B[rows], label_smoothing=0.1).backward()
            optimizer.step()
            schedule.step()
    with torch.no_grad():
        accuracy = (net(img_B3HW[val]).argmax(1) == label_B[val]).float().mean()
    assert accuracy >= 1 - (5.4 + 2 * 2.3) / 360


@pytest.mark.parametrize("size", [16, 64])
def test_the_classifiers_parts_agree(size: int) -> None:
    net, img_B3HW = classifier().eval(), to_float(images(size))
    maps, f_BF = net.feature_maps(img_B3HW), net.features(img_B3HW)
    assert [tuple(m.shape[1:]) for m in maps] == [
        (16, size, size),
        (32, size // 2, size // 2),
        (64, size // 4, size // 4),
    ]
    assert f_BF.shape == (2, net.num_features) and torch.equal(f_BF, maps[-1].mean((2, 3)))
    assert torch.equal(net.logits(f_BF), net(img_B3HW)) and net(img_B3HW).shape == (2, net.num_classes)


def test_the_classifier_judges_each_image_alone_in_training_too() -> None:
    net, img_B3HW = classifier().double().train(), to_float(images(16, batch=8)).double()
    torch.testing.assert_close(net(img_B3HW)[:1], net(img_B3HW[:1]), rtol=SAME, atol=SAME)


def test_groups_must_divide_channels() -> None:
    with pytest.raises(VarlabError, match=r"groups=7 does not divide.*\[16, 32, 64\]"):
        Classifier(channels=[16, 32, 64], blocks=1, groups=7, num_classes=10)


def test_the_perceptual_weights_fit_the_small_classifier() -> None:
    config = OmegaConf.load(CONF / "perceptual" / "classifier.yaml")
    img_B3HW = to_float(images(16))
    distance = ClassifierPerceptual(classifier=classifier(), weights=list(config.weights))
    assert float(distance(img_B3HW, -img_B3HW)) > 0


def test_the_classifier_extractor_is_the_classifier() -> None:
    net, img_u8_B3HW = classifier().train(), images(16)
    extract: Extractor = ClassifierExtractor(classifier=net, hash="abcd")
    f_BF, logits_BK = extract(img_u8_B3HW)
    assert torch.equal(f_BF, net.features(to_float(img_u8_B3HW))) and torch.equal(logits_BK, net(to_float(img_u8_B3HW)))
    assert (extract.num_features, extract.num_classes) == (64, 10) == (f_BF.shape[1], logits_BK.shape[1])
    assert not f_BF.requires_grad and not net.training
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(extract(img_u8_B3HW)[0], f_BF)
    with pytest.raises(VarlabError, match=r"uint8 images.*float32"):
        extract(to_float(img_u8_B3HW))


def test_the_inception_extractor_is_torch_fidelitys(inception_file: Path) -> None:
    """Equal to torchmetrics' copy without its antialiasing resize, features and logits from one pass."""
    from torchmetrics.image.fid import NoTrainInceptionV3

    img_u8_B3HW = images(32, batch=1)
    extract: Extractor = InceptionExtractor(weights=str(inception_file))
    f_BF, logits_BK = extract(img_u8_B3HW)
    layers = ["2048", "logits_unbiased"]
    reference = NoTrainInceptionV3("inception-v3-compat", layers, str(inception_file), antialias=False)
    expected_f_BF, expected_logits_BK = super(NoTrainInceptionV3, reference).forward(img_u8_B3HW)
    torch.testing.assert_close(f_BF, expected_f_BF, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits_BK, expected_logits_BK, rtol=1e-5, atol=1e-6)
    assert f_BF.shape == (1, 2048) and logits_BK.shape == (1, 1008) and extract.num_classes is None
    assert extract.hash == hashlib.sha256(inception_file.read_bytes()).hexdigest()
    known = extract.outputs(img_u8_B3HW)
    assert torch.equal(known["features_BF"], f_BF) and torch.equal(known["logits_BK"], logits_BK)
    kept: list[torch.Tensor] = []
    reference.Mixed_6d.branch1x1.register_forward_hook(lambda module, inputs, output: kept.append(output))
    super(NoTrainInceptionV3, reference).forward(img_u8_B3HW)
    by_place = kept[0][0, :7].movedim(0, 2).reshape(1, -1)  # rows, columns, channels: as TensorFlow flattens
    assert known["spatial_BS"].shape == (1, extract.num_spatial)
    torch.testing.assert_close(known["spatial_BS"], by_place, rtol=1e-5, atol=1e-6)
    with pytest.raises(VarlabError, match="uint8"):
        extract(to_float(img_u8_B3HW))


def test_inception_without_weights_is_a_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VarlabError, match=r"no Inception weights at .*absent\.pth"):
        InceptionExtractor(weights=str(tmp_path / "absent.pth"))
    other = tmp_path / "other.pth"
    torch.save({"weight": torch.ones(1)}, other)
    with pytest.raises(VarlabError, match=r"other\.pth does not hold"):
        InceptionExtractor(weights=str(other))
    torch.save({"code": Classifier}, other)
    with pytest.raises(VarlabError, match=r"other\.pth does not hold"):
        InceptionExtractor(weights=str(other))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    monkeypatch.setattr("torch_fidelity.feature_extractor_inceptionv3.URL_INCEPTION_V3", "http://127.0.0.1:9/w.pth")
    with pytest.raises(
        VarlabError, match=r"Could not download http://127\.0\.0\.1:9/w\.pth .*put it at .*/checkpoints/w\.pth"
    ):
        InceptionExtractor(weights=None)
    (tmp_path / "checkpoints" / "w.pth").write_bytes(b"half")
    with pytest.raises(VarlabError, match=r"w\.pth is damaged, or another file .*6726825d.*: remove it"):
        InceptionExtractor(weights=None)


def test_weights_in_the_folder_of_torch_need_no_network(
    inception_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By their hash; a path of another file is taken with a word."""
    place = tmp_path / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    place.parent.mkdir()
    place.write_bytes(inception_file.read_bytes())
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    digest = hashlib.sha256(inception_file.read_bytes()).hexdigest()
    monkeypatch.setattr("varlab.metrics.extractors._PUBLISHED", digest[:8])
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *a, **k: pytest.fail("asked the network"))
    assert InceptionExtractor(weights=None).hash == digest and not caplog.records
    monkeypatch.undo()
    InceptionExtractor(weights=str(place))
    assert "is not the published file" in caplog.text
