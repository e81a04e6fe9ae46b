"""What the end of a command says: scores beside trivial baselines, where the pictures are, which command comes next."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

__all__ = ["describe_scores", "say_next"]

logger = logging.getLogger(__name__)


def describe_scores(
    scores: Mapping[str, object], *, judge: Mapping[str, object], plain_psnr: float | None = None
) -> str:
    """The scores that a person asks for first, each beside what a guess and what real images have.

    judge: ``HeldOutAccuracy`` of the judge, as a protocol holds it. plain_psnr: of one colour for all images.
    """
    known = {key: float(value) for key, value in scores.items() if isinstance(value, int | float)}
    beside = {key: float(value) for key, value in judge.items() if isinstance(value, int | float)}
    parts = []
    if "accuracy" in known:
        compared = [f"{name}: {beside[key]:.0%}" for key, name in _GUESSES.items() if key in beside]
        parts.append(f"the judge sees the class in {known['accuracy']:.0%} of samples{_in_brackets(compared)}")
    if "fid_ratio" in known:
        parts.append(f"FID ratio {known['fid_ratio']:.2f} (real images: 1)")
    elif "fid" in known:
        compared = [f"held-out images: {known['fid_val']:.3g}"] if "fid_val" in known else []
        parts.append(f"FID {known['fid']:.3g}{_in_brackets(compared)}")
    if "psnr" in known:
        compared = [] if plain_psnr is None else [f"one colour for all images: {plain_psnr:.1f} dB"]
        parts.append(f"PSNR {known['psnr']:.1f} dB{_in_brackets(compared)}")
    return "; ".join(parts)


_GUESSES = {"majority": "always the largest class", "accuracy": "real images"}


def _in_brackets(parts: list[str]) -> str:
    return f" ({', '.join(parts)})" if parts else ""


def say_next(picture: Path | None, *commands: str) -> None:
    """Log where the pictures are, and the commands that come next."""
    if picture is not None:
        logger.info("look at %s", picture)
    if commands:
        logger.info("next: %s", ", and ".join(commands), extra={"detail": True})
