"""Optimizers: which parameters decay, and the learning rate set from outside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from varlab.config import Config
from varlab.types import VarlabError

OptimizerFactory = Callable[[list[Config]], Optimizer]
"""Any torch optimizer with all but its parameters given: ``_partial_: true`` in YAML, ``functools.partial`` in code."""


def parameter_groups(module: Any) -> list[Config]:
    """Two groups: what the optimizer's weight decay applies to, and what it does not.

    Biases, gains and whatever else has one dimension do not decay, nor do the names in the module's own
    ``no_weight_decay()`` (embeddings, as in VAR and GPT-2). Frozen parameters are left out.
    """
    spared = module.no_weight_decay() if hasattr(module, "no_weight_decay") else set()
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (plain if parameter.ndim <= 1 or name in spared else decayed).append(parameter)
    groups: list[Config] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(factory: OptimizerFactory, module: nn.Module) -> Optimizer:
    """The optimizer of a module's parameters; each group remembers its base rate as ``initial_lr``.

    Raises VarlabError for settings that the optimizer refuses.
    """
    try:
        optimizer = factory(parameter_groups(module))
    except (TypeError, ValueError) as error:
        raise VarlabError(f"The optimizer refuses its settings ({error}): see those under task.optimizer.") from error
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
    return optimizer


def scale_learning_rate(optimizer: Optimizer, factor: float) -> float:
    """Set every group's rate to ``factor`` times its base rate; returns the first group's rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    return float(optimizer.param_groups[0]["lr"])


def gradients(optimizer: Optimizer) -> list[Tensor]:
    """The gradients that an optimizer is about to use, in the order of its parameters."""
    return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def forget_rows(optimizer: Optimizer, parameter: nn.Parameter, rows: Tensor) -> None:
    """Zero an optimizer's moments for some rows of a parameter that were given new values."""
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            value[rows] = 0
