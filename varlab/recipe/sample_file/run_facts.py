"""What the result of an evaluated run says beside its settings, and whether the run fits a named protocol."""

from __future__ import annotations

from varlab.config import Config
from varlab.data import ShardDataModule
from varlab.files import digest
from varlab.metrics.extractors import Extractor
from varlab.metrics.named_protocol import ScoredSet, require_protocol, score_label
from varlab.recipe.finished_run import FinishedRun
from varlab.recipe.sample_file.origin import GUIDANCE, weight_facts
from varlab.recipe.sample_file.run_samples import asked_labels, spread_of
from varlab.run import provenance
from varlab.types import VarlabError

__all__ = ["code_facts", "image_facts", "run_facts"]


def run_facts(config: Config, run: FinishedRun, data: ShardDataModule, extractor: Extractor) -> Config:
    """The label of its FID, its classes' balance, the meaning of guidance, weights, how the images were made, the code.

    Raises VarlabError unless the protocol that ``metrics`` names fits.
    """
    metrics, generator = config["metrics"], run.model.transformer is not None
    if metrics.get("protocols"):
        raise VarlabError(
            "Several protocols are compared on a reference of one's own (reference=FILE.npz or a folder)."
        )
    n = config["n"] if generator else data.info.counts["val"]
    balance = spread_of(run, n, asked_labels(config, data)) if generator else "as the val split"
    scored = ScoredSet(
        of="samples" if generator else "reconstructions",
        n=n,
        image_size=tuple(data.info.image_size),
        extractor=extractor.name,
        weights=extractor.hash,
        moments=False,
        reference_images=data.info.counts["train" if generator else "val"],
        balance=balance,
    )
    asked = metrics.get("protocol")
    require_protocol(asked, scored)
    label = score_label(asked, n, extractor.name)
    said = {"label": label if generator else label.replace("FID", "rFID"), "balance": balance}
    more = {"guidance": GUIDANCE} if generator else {"ris_splits": metrics["splits"]}
    return said | more | weight_facts(run.path, config["weights"]) | image_facts(data) | code_facts()


def image_facts(data: ShardDataModule | None) -> Config:
    """How the images were brought to their size, as far as their index says."""
    return {"images": dict(data.index.source)} if isinstance(data, ShardDataModule) else {}


def code_facts() -> Config:
    """The version and the commit of the code that measures, and a hash of its uncommitted changes if there are some."""
    code = provenance.code()
    known = {key: code[key] for key in ("version", "commit")}
    changes = [code.get("diff"), code.get("untracked")]
    return {"code": known | ({"changes": digest(changes)[:12]} if any(changes) else {})}
