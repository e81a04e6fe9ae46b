"""The trainings of tokenizer, generator and classifier: LightningModules with optimizers, EMA and callbacks."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from varlab.tasks.base import Task
    from varlab.tasks.classifier_task import ClassifierTask
    from varlab.tasks.gan import GanLoss, LossWeights
    from varlab.tasks.generator_task import GeneratorTask
    from varlab.tasks.target import Labels, Rotation
    from varlab.tasks.tokenizer_task import TokenizerTask
    from varlab.tasks.trainer import TrainerData, fit
    from varlab.tasks.update.code_use import Revival
    from varlab.tasks.update.scale_stages import ScaleStages
    from varlab.tasks.update.schedule import WarmupDecay

__all__ = [
    "ClassifierTask",
    "GanLoss",
    "GeneratorTask",
    "Labels",
    "LossWeights",
    "Revival",
    "Rotation",
    "ScaleStages",
    "Task",
    "TokenizerTask",
    "TrainerData",
    "WarmupDecay",
    "fit",
]

_MODULES = {
    "ClassifierTask": "classifier_task",
    "GanLoss": "gan",
    "GeneratorTask": "generator_task",
    "Labels": "target",
    "LossWeights": "gan",
    "Revival": "update.code_use",
    "Rotation": "target",
    "ScaleStages": "update.scale_stages",
    "Task": "base",
    "TokenizerTask": "tokenizer_task",
    "TrainerData": "trainer",
    "WarmupDecay": "update.schedule",
    "fit": "trainer",
}


def __getattr__(name: str) -> Any:
    """Import a name on first use: scores need the likelihood and the collectives, but not Lightning."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__} has no attribute {name}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
