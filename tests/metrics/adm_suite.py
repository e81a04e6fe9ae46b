"""The scores of the ADM suite (Dhariwal & Nichol 2021) in float64 numpy and scipy, written from its definition.

Of features and logits in the order of a file, and nothing of varlab.
"""

from __future__ import annotations

import numpy as np
import scipy.linalg
import scipy.spatial.distance
import scipy.special


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What the suite stores as mu and sigma."""
    return x.astype(np.float64).mean(0), np.cov(x.astype(np.float64), rowvar=False)


def frechet(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> float:
    root = scipy.linalg.sqrtm(a[1] @ b[1]).real
    return float(np.square(a[0] - b[0]).sum() + np.trace(a[1] + b[1] - 2 * root))


def inception_score(logits: np.ndarray, split_size: int) -> float:
    scores = []
    for first in range(0, len(logits), split_size):
        p = scipy.special.softmax(logits[first : first + split_size].astype(np.float64), axis=1)
        scores.append(np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean()))
    return float(np.mean(scores))


def balls(x: np.ndarray, k: int) -> np.ndarray:
    distance = scipy.spatial.distance.cdist(x.astype(np.float64), x.astype(np.float64))
    return np.partition(distance, k, axis=1)[:, k]


def manifold_scores(real: np.ndarray, fake: np.ndarray, k: int, wide: int) -> dict[str, float]:
    """Precision and recall with k, density and coverage with ``wide`` neighbours (Naeem et al. 2020)."""
    distance = scipy.spatial.distance.cdist(fake.astype(np.float64), real.astype(np.float64))
    inside = distance <= balls(real, wide)
    return {
        "precision": float((distance <= balls(real, k)).any(1).mean()),
        "recall": float((balls(fake, k) >= distance.T).any(1).mean()),
        "density": float(inside.sum(1).mean() / wide),
        "coverage": float(inside.any(0).mean()),
    }


def kid(fake: np.ndarray, real: np.ndarray, *, subsets: int, size: int, seed: int) -> float:
    """Bińkowski et al. 2018, with torch-fidelity's subsets."""
    random, values = np.random.RandomState(seed), []
    for _ in range(subsets):
        x = fake[random.choice(len(fake), size, replace=False)].astype(np.float64)
        y = real[random.choice(len(real), size, replace=False)].astype(np.float64)
        within = [((z @ z.T / z.shape[1] + 1) ** 3)[~np.eye(size, dtype=bool)].mean() for z in (x, y)]
        values.append(sum(within) - 2 * ((x @ y.T / x.shape[1] + 1) ** 3).mean())
    return float(np.mean(values))
