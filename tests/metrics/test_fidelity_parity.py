"""The whole path from files of images against torch-fidelity's own, with one and the same (random) Inception."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from tests.laws.conftest import load as group
from varlab.data.image.npz import write_npz
from varlab.data.image.picture import PixelRules
from varlab.metrics.distribution.kernel_distance import KID
from varlab.metrics.extractors import Extractor, InceptionExtractor
from varlab.score.image_set import NpzImages
from varlab.score.reference import read_reference
from varlab.score.reference_writer import write_reference
from varlab.score.set_scorer import SetScorer

pytestmark = pytest.mark.numeric

N, M = 22, 18


class Images(Dataset[torch.Tensor]):
    def __init__(self, img_NHW3: np.ndarray):
        self._img = torch.from_numpy(img_NHW3).permute(0, 3, 1, 2).contiguous()

    def __len__(self) -> int:
        return len(self._img)

    def __getitem__(self, i: int | slice) -> torch.Tensor:
        return self._img[i]


def picture(n: int, seed: int) -> np.ndarray:
    """Smooth random images."""
    coarse = np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 3))
    return coarse.repeat(8, 1).repeat(8, 2).astype(np.uint8)


class Layer64(Extractor):
    """Inception's layer of 64 features: a few images give it covariances of full rank."""

    name, resize, num_features, num_classes, knows_content = "inception64", "tf1-bilinear-299", 64, None, False

    def __init__(self, weights: Path):
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        super().__init__()
        self.net, self.hash = FeatureExtractorInceptionV3("inception-v3-compat", ["64"], str(weights)), ""

    def extract(self, img_u8_B3HW: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        (f_BF,) = self.net(img_u8_B3HW)
        return f_BF, f_BF


def scorer_of(folder: Path, fake: np.ndarray, real: np.ndarray, extract: Extractor, *, batch: int) -> SetScorer:
    for name, img in (("fake", fake), ("real", real)):
        write_npz(folder / f"{name}.npz", {"arr_0": img})
    settings = group("metrics", "torch_fidelity")
    asked = {key: settings[key] for key in ("neighbours", "manifold", "density_neighbours", "inception")}
    return SetScorer(
        samples=NpzImages(folder / "fake.npz"),
        reference=read_reference(folder / "real.npz", rules=PixelRules(most_pixels=1 << 20)),
        extractor=extract,
        sheets={"": (asked | {"splits": 5, "kid": {"subsets": 4, "size": 12, "seed": 2020}}, "images")},
        seed=0,
        batch=batch,
    )


def torch_fidelitys(fake: np.ndarray, real: np.ndarray, weights: Path, **asked: object) -> dict[str, float]:
    from torch_fidelity import calculate_metrics

    theirs: dict[str, float] = calculate_metrics(
        input1=Images(fake), input2=Images(real), cuda=False, fid=True, kid=True, prc=True, isc_splits=5, kid_subsets=4,
        kid_subset_size=12, feature_extractor="inception-v3-compat", feature_extractor_weights_path=str(weights),
        cache=False, verbose=False, save_cpu_ram=True, **asked,
    )  # fmt: skip
    return theirs


def exact_frechet(x_NF: torch.Tensor, y_MF: torch.Tensor) -> float:
    """By definition, in float64: the root's trace is the nuclear norm of the product of the two centred sets."""
    (x, mean_x), (y, mean_y) = ((z - z.mean(0), z.mean(0)) for z in (x_NF.double().numpy(), y_MF.double().numpy()))
    x, y = x / np.sqrt(len(x) - 1), y / np.sqrt(len(y) - 1)
    root = np.linalg.svd(x @ y.T, compute_uv=False).sum()
    return float(np.square(mean_x - mean_y).sum() + np.square(x).sum() + np.square(y).sum() - 2 * root)


@pytest.mark.slow
def test_scores_of_more_images_than_features_are_torch_fidelitys_and_torchmetrics(
    inception_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is left is their own rounding: float32 means (1e-7 of FID) and kernels. In float64 nothing is left."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

    fake, real = picture(80, 0), picture(80, 1) // 2 + 60
    scorer = scorer_of(tmp_path, fake, real, Layer64(inception_file), batch=16)
    monkeypatch.setattr("varlab.score.set_scorer.fid_error", lambda *a, **k: 0.0)  # which torch-fidelity does not have
    ours = scorer()
    layers = {f"feature_layer_{metric}": "64" for metric in ("fid", "kid", "prc")}
    theirs = torch_fidelitys(fake, real, inception_file, batch_size=16, **layers)
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-5)
    assert (ours["precision"], ours["recall"]) == pytest.approx((theirs["precision"], theirs["recall"]))
    assert 0 < ours["recall"] < 1
    real_NF, fake_NF = (x_NF.double() for x_NF in scorer._sheets[""].manifolds.features())
    statistics = [fid_features_to_statistics(x_NF) for x_NF in (fake_NF, real_NF)]
    assert min(float(np.linalg.eigvalsh(of["sigma"])[0]) for of in statistics) > 1e-12  # of full rank
    [fid] = fid_statistics_to_metric(*statistics, verbose=False).values()
    assert ours["fid"] == pytest.approx(fid, rel=1e-10) == pytest.approx(exact_frechet(fake_NF, real_NF), rel=1e-10)
    kid = kid_features_to_metric(fake_NF, real_NF, kid_subsets=4, kid_subset_size=12, verbose=False)
    assert ours["kid"] == pytest.approx(kid["kernel_inception_distance_mean"], rel=1e-9)
    metric = FrechetInceptionDistance(feature=64, antialias=False, feature_extractor_weights_path=str(inception_file))
    kernel = KernelInceptionDistance(feature=metric.inception, subsets=1, subset_size=80)
    for of, is_real in ((fake, False), (real, True)):
        for img_u8_B3HW in Images(of)[:].split(16):
            metric.update(img_u8_B3HW, real=is_real)
            kernel.update(img_u8_B3HW, real=is_real)
    assert ours["fid"] == pytest.approx(float(metric.compute()), rel=1e-6)
    whole = KID(subsets=1, size=80, seed=0)
    whole.update(real_NF, True)
    whole.update(fake_NF, False)
    assert float(whole.compute()[0]) == pytest.approx(float(kernel.compute()[0]), rel=1e-4)


@pytest.mark.slow
def test_scores_of_files_are_torch_fidelitys(
    inception_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FID of fewer images than features: torch-fidelity takes roots of the eigenvalues of a singular product, whose roundings
    of 1e-16 become 1e-8 each (here 6e-8 of FID)."""
    fake, real = picture(N, 0), picture(M, 1) // 2 + 60
    extract = InceptionExtractor(weights=str(inception_file))
    scorer = scorer_of(tmp_path, fake, real, extract, batch=8)
    monkeypatch.setattr("varlab.score.set_scorer.fid_error", lambda *a, **k: 0.0)
    ours = scorer()
    theirs = torch_fidelitys(fake, real, inception_file, batch_size=8, isc=True, feature_layer_prc="2048")
    assert ours["inception_score"] == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert ours["inception_score"] > 1.05
    assert (ours["precision"], ours["recall"]) == pytest.approx((theirs["precision"], theirs["recall"]))
    assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-5)
    real_NF, fake_NF = scorer._sheets[""].manifolds.features()
    assert ours["fid"] == pytest.approx(exact_frechet(fake_NF, real_NF), rel=1e-9)
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-6)
    # the file that varlab writes of the same images stores the same moments, those of sFID, too
    write_reference(
        tmp_path / "own.npz", images=NpzImages(tmp_path / "real.npz"), extractor=extract, kept=M, seed=0, batch=8
    )
    stored = read_reference(tmp_path / "own.npz", rules=PixelRules(most_pixels=1 << 20))
    assert set(stored.moments) == {"mu", "mu_s"}
    sheet = scorer._sheets[""]
    assert sheet.sfid is not None and ours["sfid"] > 0
    for metric, name in ((sheet.fid, "mu"), (sheet.sfid, "mu_s")):
        for mine, written in zip(metric.moments(real=True), stored.moments[name], strict=True):
            torch.testing.assert_close(mine, written, rtol=1e-9, atol=1e-12)
