"""Optimizers: parameter groups with and without weight decay, learning rates, moments."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from torch.optim import Optimizer

from varlab.config import Config
from varlab.types import VarlabError

OptimizerFactory = Callable[[list[Config]], Optimizer]
"""A torch optimizer that lacks only its parameters: ``_partial_: true`` in YAML, ``functools.partial`` in code."""


def parameter_groups(module: nn.Module) -> list[Config]:
    """Two groups of parameters: with the optimizer's weight decay, and without.

    Parameters of one dimension (biases, gains) do not decay, nor do those that the module's ``no_weight_decay()`` names
    (embeddings, as in VAR and GPT-2). Frozen parameters are left out.
    """
    spared: set[str] = getattr(module, "no_weight_decay", set)()
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (plain if parameter.ndim <= 1 or name in spared else decayed).append(parameter)
    groups: list[Config] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(factory: OptimizerFactory, module: nn.Module) -> Optimizer:
    """Build the optimizer of a module's parameters; ``initial_lr`` of each group holds its base rate.

    Raises VarlabError if the optimizer refuses its settings.
    """
    try:
        optimizer = factory(parameter_groups(module))
    except (TypeError, ValueError) as error:
        raise VarlabError(f"The optimizer refuses its settings ({error}): see those under task.optimizer.") from error
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def scale_learning_rate(optimizer: Optimizer, factor: float) -> None:
    """Set the rate of every group to ``factor`` times its base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def gradients(optimizer: Optimizer) -> list[Tensor]:
    """The gradients of an optimizer's parameters, in their order."""
    return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def forget_rows(optimizer: Optimizer, parameter: nn.Parameter, rows: Tensor) -> None:
    """Set the moments of some rows of a parameter to 0, after these rows were replaced."""
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            value[rows] = 0
