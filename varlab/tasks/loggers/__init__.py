"""Loggers of Lightning's kind: the run's journal, and TensorBoard that a resumed run cuts back."""

from varlab.tasks.loggers.journal import Journal
from varlab.tasks.loggers.tensorboard import TensorBoard

__all__ = ["Journal", "TensorBoard"]
