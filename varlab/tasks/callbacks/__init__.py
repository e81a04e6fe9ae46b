"""Callbacks around updates: logging, evaluation, checkpoints, stop. None of them changes the weights."""

from varlab.tasks.callbacks.best_weights import BestWeights
from varlab.tasks.callbacks.checkpoint import Checkpointer, Resume
from varlab.tasks.callbacks.evaluations import InTrainingScores, Pictures, Validation
from varlab.tasks.callbacks.periodic import Periodic, passes
from varlab.tasks.callbacks.progress import ProgressBar
from varlab.tasks.callbacks.time_budget import TimeBudget
from varlab.tasks.callbacks.training_log import TrainingLog

__all__ = [
    "BestWeights",
    "Checkpointer",
    "InTrainingScores",
    "Periodic",
    "Pictures",
    "ProgressBar",
    "Resume",
    "TimeBudget",
    "TrainingLog",
    "Validation",
    "passes",
]
