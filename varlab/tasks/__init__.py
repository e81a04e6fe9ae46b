"""The trainings of tokenizer, generator and classifier: LightningModules with optimizers, EMA and callbacks."""

from varlab.tasks.base import Task
from varlab.tasks.classifier_task import ClassifierTask
from varlab.tasks.gan import GanLoss, LossWeights
from varlab.tasks.generator_task import GeneratorTask
from varlab.tasks.target import Labels, Rotation
from varlab.tasks.tokenizer_task import TokenizerTask
from varlab.tasks.trainer import fit
from varlab.tasks.update.code_use import Revival
from varlab.tasks.update.schedule import WarmupDecay

__all__ = [
    "ClassifierTask",
    "GanLoss",
    "GeneratorTask",
    "Labels",
    "LossWeights",
    "Revival",
    "Rotation",
    "Task",
    "TokenizerTask",
    "WarmupDecay",
    "fit",
]
