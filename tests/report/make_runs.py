"""Made-up run directories in varlab's format, with everything that a report reads."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

LEVELS = {"next_scale": 5, "raster": 1, "random": 1}
FLOPS_PER_IMAGE = 2.5e7


def grid(columns: int, rows: int, *, noise: float, seed: int, path: Path, fade: bool = False) -> None:
    """Digits in a grid, one class in each row; noise turns them into samples, fading into a growing image."""
    digits = load_digits()
    rng = np.random.default_rng(seed)
    canvas = np.zeros((rows * 16, columns * 16))
    for row in range(rows):
        same = rng.choice(np.flatnonzero(digits.target == row % 10))
        for column in range(columns):
            index = same if fade else rng.choice(np.flatnonzero(digits.target == row % 10))
            picture = Image.fromarray((digits.images[index] * 15.9).astype("uint8")).resize(
                (16, 16), Image.Resampling.BICUBIC
            )
            cell = np.asarray(picture) + noise * rng.normal(size=(16, 16))
            share = (column + 1) / columns if fade else 1.0
            canvas[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16] = cell * share + 60 * (1 - share)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(canvas.clip(0, 255).astype("uint8")).save(path)


def write_run(path: Path, record: dict[str, Any], metrics: list[dict[str, Any]]) -> Path:
    path.mkdir(parents=True, exist_ok=True)
    (path / "run.json").write_text(json.dumps({"outcome": {"state": "running"}} | record))
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in metrics))
    return path


def record(*, name: str, seed: int, config: dict[str, Any], overrides: list[str], **more: Any) -> dict[str, Any]:
    return {
        "command": "train",
        "name": name,
        "overrides": overrides,
        "config": {"seed": seed, **config},
        "seed": seed,
        "code": {"version": "0.1.0", "commit": "663c360aa11bb22cc33", "diff": ""},
        "versions": {"python": "3.11.2", "torch": "2.13.0", "lightning": "2.6.1"},
        "hardware": {"cpu": "AMD EPYC 9V74", "cores": 2, "gpus": []},
        "data": {"path": "runs/data/source=digits", "hash": "9f3ac2", "classes": 10, "image_size": [16, 16]},
        "parents": {},
        "auto": {"precision": "bf16-mixed"},
        "resumes": [],
        **more,
    }


def generator(
    path: Path,
    *,
    order: str,
    seed: int = 0,
    state: str = "finished",
    images: int = 60_000,
    pictures: bool = False,
    fid: float = 10.0,
    cfg: float = 1.0,
    n: int = 1797,
    error: str | None = None,
) -> Path:
    """A generator's run directory: 60 log points, in-training FID, one score file unless it is unfinished."""
    metrics = [generator_point(step, order=order, seed=seed, images=images, fid=fid) for step in range(1, 61)]
    write_run(path, generator_record(path, order, seed, images, cfg, {"state": state, "error": error}), metrics)
    if state == "finished":
        score(path, fid=fid, cfg=cfg, n=n, images=images, nll=metrics[-1]["val/nll"])
    if pictures:
        own = sorted(LEVELS).index(order)
        grid(10, 10, noise=0, seed=9, path=path / "pictures" / "real.png")
        grid(10, 10, noise=18, seed=own, path=path / "pictures" / "samples.png")
        grid(10, 4, noise=6, seed=own, path=path / "pictures" / "growth.png", fade=True)
    return path


def generator_point(step: int, *, order: str, seed: int, images: int, fid: float) -> dict[str, Any]:
    """One of 60 log points; each tenth has a validation, too."""
    seen, levels = images * step // 60, LEVELS[order]
    loss = 1.2 + 3.2 * math.exp(-step / 14) + 0.05 * math.sin(step * 2.1 + seed) + (0.2 if order == "raster" else 0)
    line = {
        "images": seen,
        "flops": seen * FLOPS_PER_IMAGE,
        "seconds": step * 1.9,
        "train/loss": loss,
        "train/grad_norm": 0.4,
    }
    if step % 10:
        return line
    line |= {"val/nll": 64 * loss + 3, "val/loss": loss + 0.05, "val/fid": fid * (1 + 6 * math.exp(-step / 12))}
    line |= {f"val/loss/{k}": loss * (0.6 + 0.2 * k) for k in range(levels)} if levels > 1 else {}
    return line | ({f"val/accuracy/{k}": 0.6 - 0.1 * k for k in range(levels)} if levels > 1 else {})


def generator_record(
    path: Path, order: str, seed: int, images: int, cfg: float, end: dict[str, str | None]
) -> dict[str, Any]:
    tokenizer, sha = ("multi", "aa") if LEVELS[order] > 1 else ("single", "bb")
    spent = {"images": images, "flops": images * FLOPS_PER_IMAGE, "tokenizer_flops": images * 4.1e6, "seconds": 114.2}
    config = {
        "task": {"label_drop": 0.1},
        "order": {"_target_": f"varlab.order.{order}"},
        "out": str(path),
        "transformer": {"depth": 6, "width": 128},
        "tokenizer_run": tokenizer,
        "sampler": {"cfg": cfg},
    }
    return record(
        name="digits/generator",
        seed=seed,
        config=config,
        overrides=[f"order={order}", f"seed={seed}"],
        outcome={key: value for key, value in (end | spent).items() if value is not None},
        build={"order": {}, "transformer": {"depth": 6}},
        parents={"tokenizer": {"run": "runs/demo/multi", "weights_sha256": sha, "config": {}}},
    )


def score(path: Path, *, fid: float, cfg: float = 1.0, n: int = 1797, images: int = 60_000, nll: float = 90.0) -> None:
    protocol = {
        "extractor": "classifier",
        "extractor_hash": "3f2a77",
        "reference": {"name": "train", "hash": "9f3a", "n": 1437},
        "n": n,
        "sampler": {"cfg": cfg, "top_k": 0, "top_p": 1.0},
        "seed": 0,
        "resize": "none",
        "rounding": "uint8",
    }
    values = {
        "fid": fid,
        "inception_score": 8.9,
        "inception_score_std": 0.1,
        "precision": 0.91,
        "recall": 0.74 - fid / 100,
        "accuracy": 0.983,
        "fid_draws": fid * 1.4,
        "fid_draws_std": 0.3,
        "fid_val": 9.1,
        "fid_ratio": fid * 1.4 / 9.1,
        "nn_median": 3.1,
        "nn_val_median": 3.2,
        "nn_ratio": 0.97,
        "val_nll": nll,
    }
    content = {
        "kind": "generator",
        "protocol": protocol,
        "scores": values,
        "images": images,
        "cost": {"sampling_flops": n * 1.2e7 * cfg, "sampling_seconds": 6.3},
    }
    (path / "scores").mkdir(exist_ok=True)
    (path / "scores" / f"classifier-3f2a_n{n}_cfg{cfg}_seed0.json").write_text(json.dumps(content))


def tokenizer(path: Path, *, scales: int, seed: int = 0, pictures: bool = False) -> Path:
    """A tokenizer's run directory: GAN health from 10,000 images on, codebook numbers per scale."""
    choice = "multi" if scales > 1 else "single"
    metrics = []
    for step in range(1, 41):
        line = {
            "images": step * 1000,
            "flops": step * 1e11,
            "seconds": float(step),
            "train/l1": 0.05 + math.exp(-step / 8),
            "train/perceptual": 0.1 + math.exp(-step / 10),
            "train/vq": 0.02 + 0.2 * math.exp(-step / 5),
        }
        line |= {f"train/usage/{k}": 0.9 - 0.1 * k for k in range(scales)}
        if step > 10:
            line |= {
                "train/lambda": 0.8 + 0.3 * math.sin(step),
                "train/grad_rec": 0.01,
                "train/grad_gan": 0.02 + 0.01 * math.cos(step),
                "train/logits_real": 0.3 + step / 100,
                "train/logits_fake": -0.3 - step / 80,
            }
        if step % 8 == 0:
            line |= {"val/psnr": 24 - 9 * math.exp(-step / 12)}
            line |= {f"val/usage/{k}": 0.97 - 0.12 * k for k in range(scales)}
            line |= {f"val/perplexity/{k}": 210.0 - 25 * k for k in range(scales)}
        metrics.append(line)
    outcome = {"state": "finished", "images": 40_000, "flops": 4e12, "seconds": 40.0}
    config = {"tokenizer": {"_target_": "varlab.tokenizer.VQTokenizer", "scales": list(range(1, scales + 1))}}
    write_run(
        path,
        record(
            name="digits/tokenizer",
            seed=seed,
            config=config,
            overrides=[f"tokenizer={choice}", "task=tokenizer"],
            outcome=outcome,
            build={"tokenizer": {}},
        ),
        metrics,
    )
    (path / "scores").mkdir(exist_ok=True)
    content = {
        "kind": "tokenizer",
        "protocol": {"extractor": "classifier", "n": 360},
        "images": 40_000,
        "cost": {},
        "scores": {"rfid": 4.2, "psnr": 23.9, "l1": 0.061, "perceptual": 0.12},
    }
    (path / "scores" / "classifier-3f2a_n360.json").write_text(json.dumps(content))
    if pictures:
        grid(20, 2, noise=4, seed=3, path=path / "pictures" / "reconstructions.png")
    return path


def classifier(path: Path, *, seed: int = 0) -> Path:
    metrics = [
        {
            "images": step * 500,
            "flops": step * 1e10,
            "seconds": step / 5,
            "train/loss": math.exp(-step / 6),
            "val/accuracy": 0.992 - 0.5 * math.exp(-step / 4),
            "val/loss": 0.03,
        }
        for step in range(1, 31)
    ]
    outcome = {"state": "finished", "images": 15_000, "flops": 3e11, "seconds": 6.0}
    return write_run(
        path,
        record(
            name="digits/classifier",
            seed=seed,
            config={"classifier": {"channels": [32, 64]}},
            overrides=["task=classifier", f"seed={seed}"],
            outcome=outcome,
        ),
        metrics,
    )


def regressor(
    path: Path, *, seed: int = 0, error: float = 0.2, report: dict[str, Any] | None = None, **parts: Any
) -> Path:
    """A run of a kind of training that varlab does not know."""
    metrics = [
        {"images": 100 * step, "flops": 1e9 * step, "seconds": step, "train/loss": 1 / step, "val/error": error + 1 / step,
         "val/error/0": 0.1}
        for step in range(1, 9)
    ]  # fmt: skip
    config = {"kind": "regressor", **({"report": report} if report else {})}
    made = record(name="mine/regressor", seed=seed, config=config, overrides=["task=regressor"], **parts)
    grid(4, 2, noise=4, seed=seed, path=path / "pictures" / "heat_map.png")
    return write_run(path, made | {"outcome": {"state": "finished", "images": 800, "flops": 8e9}}, metrics)


def everything(root: Path) -> Path:
    """A whole study: two seeds of two orders, one of a third, a failed and a running run, tokenizers, a judge."""
    for order, fid in (("next_scale", 10.0), ("raster", 14.0)):
        for seed in (0, 1):
            generator(root / f"order={order}+seed={seed}", order=order, seed=seed, fid=fid + seed, pictures=seed == 0)
    generator(root / "order=random+seed=0", order="random", fid=17.0, pictures=True)
    generator(root / "order=random+seed=1", order="random", seed=1, images=30_000, state="running")
    generator(
        root / "order=random+seed=2",
        order="random",
        seed=2,
        images=9_000,
        state="failed",
        error="Loss <NaN> three times & more.",
    )
    tokenizer(root / "tokenizer=multi", scales=5, pictures=True)
    tokenizer(root / "tokenizer=single", scales=1, pictures=True)
    classifier(root / "judge", seed=11)
    write_run(root / "data", {"command": "pack", "name": "data", "outcome": {"state": "finished"}}, [])
    return root
