"""Further feature spaces of a score, beside that of ``extractor``."""

from __future__ import annotations

from pathlib import Path

from varlab.config import Config
from varlab.metrics.extractors import Extractor, InceptionExtractor
from varlab.metrics.timm_extractor import CONFIG, TimmExtractor
from varlab.recipe.parents import Parents
from varlab.run.trust import Trust
from varlab.types import DataInfo, VarlabError

__all__ = ["feature_spaces"]

_JUDGE = "varlab.recipe.networks.judge"


def feature_spaces(config: Config, info: DataInfo, near: Path) -> dict[str, Extractor]:
    """The extractors that ``spaces`` names, by name and the beginning of their weights' hash.

    Each is the directory of a classifier's run, a file of Inception's weights, or the folder of a network of timm.
    VarlabError for anything else, and for one that is named twice.
    """
    asked = config.get("spaces") or []
    spaces: dict[str, Extractor] = {}
    for path in [asked] if isinstance(asked, str) else asked:
        extractor = _extractor(Path(path), Parents(info=info, near=near, trust=Trust.of(config.get("trust"))))
        name = f"{extractor.name}-{extractor.hash[:8]}"
        if name in spaces:
            raise VarlabError(f"spaces={path} has the weights of another one of them: name each space once.")
        spaces[name] = extractor
    return spaces


def _extractor(path: Path, parents: Parents) -> Extractor:
    if (path / CONFIG).is_file():
        return TimmExtractor(folder=str(path))
    if path.is_dir():
        return parents.extractor({"_target_": _JUDGE, "run": str(path)})
    if path.is_file():
        return InceptionExtractor(weights=str(path))
    raise VarlabError(
        f"spaces={path} is neither the directory of a judge, nor a file of Inception's weights, nor the folder of a network of "
        "timm: correct its path."
    )
