"""What a file of samples was made with: all that a score of it has to say."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from varlab.checkpoint import read_metadata
from varlab.config import Config
from varlab.files import sha256
from varlab.recipe.finished_run import FinishedRun
from varlab.recipe.preflight.named_runs import WEIGHTS
from varlab.run import provenance

__all__ = ["GUIDANCE", "ROUNDING", "balance", "origin_of", "weight_facts"]

ROUNDING = "clamp to [-1, 1], (x + 1)·127.5, to the nearest integer (ties to even), uint8"
GUIDANCE = "(1 + t)·conditional - t·unconditional, t = cfg at the last step"


def origin_of(config: Config, run: FinishedRun, label_N: Tensor, size: tuple[int, int]) -> Config:
    """What the samples depend on, in JSON types. config: of ``varlab sample``. size: (H, W) of the images."""
    assert run.model.sampler is not None
    asked = {key: config[key] for key in ("weights", "seed", "reject", "cond")}
    return {
        "n": len(label_N),
        "size": list(size),
        "order": f"drawn from seed {config['seed']}",
        "balance": balance(label_N, len(run.model.classes)),
        "rounding": ROUNDING,
        "run": str(run.path),
        **weight_facts(run.path, config["weights"]),
        "sampler": run.model.sampler.settings(),
        "guidance": GUIDANCE,
        **asked,
        "version": provenance.code()["version"],
    }


def weight_facts(run: Path, weights: str) -> Config:
    """The hash of a run's weights; of the best ones also the score that they were kept for, its value and their images."""
    file = run / WEIGHTS[weights]
    kept = {"kept": read_metadata(file)} if weights == "best" else {}
    return {"weights_sha256": sha256(file)} | kept


def balance(label_N: Tensor, num_classes: int) -> str:
    """How often each class occurs, in words. Labels of no class count as one more class."""
    counts = label_N.bincount(minlength=num_classes)
    fewest, most = int(counts.min()), int(counts.max())
    times = f"{fewest} times" if fewest == most else f"{fewest} to {most} times"
    return f"each of {len(counts)} classes {times}"
