"""What scores cost: CPU seconds and memory of 50,000 images with a judge, or of made features, each in a process of its own.

python experiments/speed/scores.py images 50000 10000      images of 64 pixels in a file against a file, in a judge's features
python experiments/speed/scores.py features 50000 10000    2,048 made features: FID, KID, precision, recall, density, coverage

Further words change conf/metrics/smoke.yaml (metrics.kid.subsets=10).
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from varlab.bench.peak_memory import held, peak, reset_peak
from varlab.config import conf_dir
from varlab.data.image.npz import IMAGES, write_npz
from varlab.data.image.picture import PixelRules
from varlab.metrics.classifier import Classifier
from varlab.metrics.extractors import ClassifierExtractor
from varlab.metrics.generator_scores import GenerationScores
from varlab.recipe.objects import set_settings
from varlab.score.image_set import NpzImages
from varlab.score.reference import read_reference
from varlab.score.set_scorer import SetScorer

CPU, SIZE, BATCH, FEATURES = torch.device("cpu"), 64, 256, 2048


def smoke(overrides: Sequence[str]) -> dict[str, object]:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        config = OmegaConf.to_container(compose(overrides=["+metrics=smoke", *overrides]).metrics)
    return set_settings(config)


def say(what: str, n: int, m: int, seconds: float, more: str, before: int) -> None:
    extra = (peak(CPU) - before) / 2**20
    print(
        f"{what} {n:,} against {m:,}: {seconds:.1f} CPU s, {more}, {extra:,.0f} MiB at most beside what was there before"
    )


class Clocked(ClassifierExtractor):
    """A judge that counts its own CPU seconds."""

    spent = 0.0

    def outputs(self, img_u8_B3HW: torch.Tensor) -> dict[str, torch.Tensor]:
        start = time.process_time()
        known = super().outputs(img_u8_B3HW)
        self.spent += time.process_time() - start
        return known


def images(n: int, m: int, overrides: Sequence[str]) -> None:
    """Everything but the extractor, for each image that is scored."""
    random = np.random.default_rng(0)
    net = Classifier(channels=[4, 8, 16, 64], blocks=1, groups=4, num_classes=10)
    judge = Clocked(classifier=net, hash="0" * 64)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("samples.npz", "reference.npz")]
        for path, count in zip(paths, (n, m), strict=True):
            parts = (random.integers(0, 256, (k, SIZE, SIZE, 3)).astype(np.uint8) for k in _parts(count))
            write_npz(path, {IMAGES: ((count, SIZE, SIZE, 3), parts)})
        reset_peak(CPU)
        before, start = held(CPU), time.process_time()
        reference = read_reference(paths[1], rules=PixelRules(most_pixels=1 << 20, depths={}))
        SetScorer(
            samples=NpzImages(paths[0]), reference=reference, extractor=judge, sheets={"": (smoke(overrides), None)}, seed=0,
            batch=BATCH,
        )()  # fmt: skip
        seconds = time.process_time() - start
    rest = 1e3 * (seconds - judge.spent) / (n + m)
    say("images", n, m, seconds, f"{judge.spent:.1f} of them the judge's, else {rest:.3f} ms an image", before)


def _parts(n: int) -> list[int]:
    return [min(BATCH, n - first) for first in range(0, n, BATCH)]


def features(n: int, m: int, overrides: Sequence[str]) -> None:
    """The memory beside the features themselves."""
    scores = GenerationScores(num_features=FEATURES, num_classes=None, content=False, seed=0, **smoke(overrides))  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(0)
    sets = [torch.randn(count, FEATURES, generator=generator).abs_() for count in (n, m)]
    reset_peak(CPU)
    before, start = held(CPU), time.process_time()
    for first in range(0, n, BATCH):
        row_B = torch.arange(first, min(first + BATCH, n))
        scores.update_fake(sets[0][first : first + BATCH], row_B[:, None].float(), None, row_B=row_B)
    for first in range(0, m, BATCH):
        scores.update_real(sets[1][first : first + BATCH], row_B=torch.arange(first, min(first + BATCH, m)))
    scores.compute()
    seconds = time.process_time() - start
    say("features", n, m, seconds, f"{(n + m) * FEATURES * 4 / 2**20:,.0f} MiB of features", before)


if __name__ == "__main__":
    torch.set_num_threads(1)
    what, n, m = sys.argv[1], *map(int, sys.argv[2:4])
    {"images": images, "features": features}[what](n, m, sys.argv[4:])
