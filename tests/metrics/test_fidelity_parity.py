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
from varlab.metrics.extractors import InceptionExtractor
from varlab.score.image_set import NpzImages, features_of
from varlab.score.reference import read_reference
from varlab.score.reference_writer import write_reference
from varlab.score.set_scorer import SetScorer

pytestmark = pytest.mark.numeric

N, M = 22, 18


class Images(Dataset[torch.Tensor]):
    def __init__(self, img_NHW3: np.ndarray):
        self._img = torch.from_numpy(img_NHW3).permute(0, 3, 1, 2)

    def __len__(self) -> int:
        return len(self._img)

    def __getitem__(self, i: int) -> torch.Tensor:
        return self._img[i]


def picture(n: int, seed: int) -> np.ndarray:
    """Smooth random images."""
    coarse = np.random.default_rng(seed).integers(0, 256, (n, 4, 4, 3))
    return coarse.repeat(8, 1).repeat(8, 2).astype(np.uint8)


@pytest.mark.slow
def test_scores_of_files_are_torch_fidelitys(
    inception_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FID of fewer images than features: torch-fidelity takes roots of the eigenvalues of a singular product, whose roundings
    of 1e-16 become 1e-8 each. KID: its kernel is float32, of numbers near 1, from which the distance is a small rest."""
    from torch_fidelity import calculate_metrics

    fake, real = picture(N, 0), picture(M, 1) // 2 + 60
    for name, img in (("fake", fake), ("real", real)):
        write_npz(tmp_path / f"{name}.npz", {"arr_0": img})
    extract = InceptionExtractor(weights=str(inception_file))
    settings = group("metrics", "torch_fidelity")
    asked = {key: settings[key] for key in ("neighbours", "manifold", "density_neighbours", "inception")}
    asked |= {"splits": 5, "kid": {"subsets": 4, "size": 12, "seed": 2020}}
    scorer = SetScorer(
        samples=NpzImages(tmp_path / "fake.npz"),
        reference=read_reference(tmp_path / "real.npz", rules=PixelRules(most_pixels=1 << 20)),
        extractor=extract,
        sheets={"": (asked, "images")},
        seed=0,
        batch=8,
    )
    monkeypatch.setattr("varlab.score.set_scorer.fid_error", lambda *a, **k: 0.0)  # which torch-fidelity does not have
    ours = scorer()
    theirs = calculate_metrics(
        input1=Images(fake), input2=Images(real), cuda=False, isc=True, fid=True, kid=True, prc=True, isc_splits=5,
        kid_subsets=4, kid_subset_size=12, feature_extractor="inception-v3-compat", feature_layer_prc="2048",
        feature_extractor_weights_path=str(inception_file), batch_size=8, cache=False, verbose=False, save_cpu_ram=True,
    )  # fmt: skip
    assert ours["inception_score"] == pytest.approx(theirs["inception_score_mean"], rel=1e-6)
    assert (ours["precision"], ours["recall"]) == pytest.approx((theirs["precision"], theirs["recall"]))
    assert ours["kid"] == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-4, abs=1e-6)
    spread = sum(
        float(known["features_BF"].var(0).sum()) for _, known in features_of(scorer._samples, extract, batch=8)
    )
    tolerance = 2048 * 2**-26 * max(spread, 1.0)
    assert ours["fid"] == pytest.approx(theirs["frechet_inception_distance"], rel=1e-4, abs=tolerance)
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
