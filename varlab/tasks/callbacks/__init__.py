"""What happens around updates: logging, evaluation, checkpoints. None of it has a say in the weights."""

from varlab.tasks.callbacks.checkpoint import Checkpointer, Resume, restore
from varlab.tasks.callbacks.evaluations import InTrainingScores, Pictures, Validation
from varlab.tasks.callbacks.journal import Journal
from varlab.tasks.callbacks.periodic import Periodic, passes
from varlab.tasks.callbacks.progress import ProgressBar
from varlab.tasks.callbacks.stop import Stop
from varlab.tasks.callbacks.training_log import TrainingLog

__all__ = [
    "Checkpointer",
    "InTrainingScores",
    "Journal",
    "Periodic",
    "Pictures",
    "ProgressBar",
    "Resume",
    "Stop",
    "TrainingLog",
    "Validation",
    "passes",
    "restore",
]
