"""The score by which a training keeps its best weights: ``checkpoint.best``."""

from __future__ import annotations

from collections.abc import Mapping

from varlab.config import Config
from varlab.errors import VarlabError

__all__ = ["best_score"]

_VALIDATED = {"nll": "min", "loss": "min", "l1": "min", "perceptual": "min"}
_VALIDATED |= dict.fromkeys(("psnr", "ssim", "accuracy"), "max")
_SCORED = {"fid": "min", "rfid": "min", "kid": "min"}
_SCORED |= dict.fromkeys(("inception_score", "precision", "recall", "density", "coverage", "judged_accuracy"), "max")


def best_score(config: Config) -> tuple[str, str] | None:
    """The name of the score without ``val/``, and whether its best value is the ``min`` or the ``max``; None without one.

    Raises VarlabError where this is not known, and for a score of samples in a training that computes none.
    """
    asked = config["checkpoint"].get("best")
    if asked is None:
        return None
    named = dict(asked) if isinstance(asked, Mapping) else {str(asked): (_VALIDATED | _SCORED).get(str(asked))}
    if len(named) != 1 or not set(named.values()) <= {"min", "max"}:
        raise VarlabError(
            f"checkpoint.best={asked} is not known: use one of {', '.join(sorted(_VALIDATED | _SCORED))}; or another "
            "score that the training logs, with its best value, as in checkpoint.best={mine:max}."
        )
    [(name, way)] = named.items()
    if name in _SCORED and config["scores"]["every"] is None:
        raise VarlabError(
            f"checkpoint.best={name} needs scores during the training: set scores.every={config['val']['every'] or 16384}."
        )
    if name in _VALIDATED and config["val"].get("skip"):
        raise VarlabError(f"checkpoint.best={name} needs validation: set val.skip=false.")
    return name, str(way)
