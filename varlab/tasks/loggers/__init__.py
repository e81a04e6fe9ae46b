"""Loggers of Lightning's kind: the run's journal, TensorBoard that a resumed run cuts back, W&B that ends with its run."""

from varlab.tasks.loggers.journal import Journal
from varlab.tasks.loggers.tensorboard import TensorBoard
from varlab.tasks.loggers.weights_and_biases import WeightsAndBiases

__all__ = ["Journal", "TensorBoard", "WeightsAndBiases"]
