"""The trainings: tokenizer, generator and classifier as LightningModules, with optimizers, EMA and callbacks."""

from varlab.tasks.base import Task
from varlab.tasks.classifier import ClassifierTask
from varlab.tasks.codebook import Revival
from varlab.tasks.fit import fit
from varlab.tasks.gan import GanLoss, LossWeights
from varlab.tasks.generator import GeneratorTask
from varlab.tasks.schedule import WarmupDecay
from varlab.tasks.tokenizer import TokenizerTask

__all__ = [
    "ClassifierTask",
    "GanLoss",
    "GeneratorTask",
    "LossWeights",
    "Revival",
    "Task",
    "TokenizerTask",
    "WarmupDecay",
    "fit",
]
