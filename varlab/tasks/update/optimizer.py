"""Optimizers: parameter groups with and without weight decay, learning rates, moments."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase

from torch import Tensor, nn
from torch.optim import Adam, Optimizer

from varlab.config import Config
from varlab.types import VarlabError

OptimizerFactory = Callable[[list[Config]], Optimizer]
"""A torch optimizer that lacks only its parameters: ``_partial_: true`` in YAML, ``functools.partial`` in code."""


def parameter_groups(module: nn.Module, no_decay: Sequence[str] = ()) -> list[Config]:
    """Two groups of parameters: with the optimizer's weight decay, and without.

    Parameters of one dimension (biases, gains) do not decay, nor do those that the module's ``no_weight_decay()`` names
    (embeddings of places, as in VAR). Frozen parameters are left out. no_decay: names of further ones that do not, or
    patterns of names (``quantizer.*``). Raises VarlabError for one that no parameter matches.
    """
    names = [name for name, _ in module.named_parameters()]
    if unknown := [pattern for pattern in no_decay if not any(fnmatchcase(name, pattern) for name in names)]:
        raise VarlabError(f"task.no_decay={unknown} matches no parameter of {type(module).__name__}: see its names.")
    spared: set[str] = getattr(module, "no_weight_decay", set)()
    spared |= {name for name in names if any(fnmatchcase(name, pattern) for pattern in no_decay)}
    decayed: list[nn.Parameter] = []
    plain: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (plain if parameter.ndim <= 1 or name in spared else decayed).append(parameter)
    groups: list[Config] = [{"params": decayed}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def build_optimizer(factory: OptimizerFactory, module: nn.Module, no_decay: Sequence[str] | None = None) -> Optimizer:
    """Build the optimizer of a module's parameters; ``initial_lr`` of each group holds its base rate.

    Adam and AdamW update each tensor in a single pass (torch's ``fused``) unless their settings say which way they do.
    no_decay: see ``parameter_groups``. Raises VarlabError if the optimizer refuses its settings.
    """
    groups = parameter_groups(module, no_decay or ())
    try:
        optimizer = factory(groups)
    except (TypeError, ValueError) as error:
        raise VarlabError(f"The optimizer refuses its settings ({error}): see those under task.optimizer.") from error
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]
        if isinstance(optimizer, Adam) and group["fused"] is None and group["foreach"] is None:
            group["fused"] = True
    return optimizer


def skips_on_device(optimizer: Optimizer) -> bool:
    """Whether its step does nothing where its ``found_inf`` is 1, for which the host need not know the number."""
    return isinstance(optimizer, Adam) and all(group["fused"] for group in optimizer.param_groups)


def scale_learning_rate(optimizer: Optimizer, factor: float) -> None:
    """Set the rate of every group to ``factor`` times its base rate."""
    for group in optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor


def anneal_weight_decay(optimizer: Optimizer, end: float, progress: float) -> None:
    """Move the weight decay of every group that decays along half a cosine to ``end``.

    progress: the done share of the training, in [0, 1], warm-up included (VAR's official code).
    """
    for group in optimizer.param_groups:
        begin = group.setdefault("initial_weight_decay", group["weight_decay"])
        if begin:
            group["weight_decay"] = end + (begin - end) * 0.5 * (1 + math.cos(math.pi * progress))


def gradients(optimizer: Optimizer) -> list[Tensor]:
    """The gradients of an optimizer's parameters, in their order."""
    return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]


def forget_rows(optimizer: Optimizer, parameter: nn.Parameter, rows: Tensor) -> None:
    """Set the moments of some rows of a parameter to 0, after these rows were replaced."""
    for value in optimizer.state.get(parameter, {}).values():
        if isinstance(value, Tensor) and value.shape == parameter.shape:
            value[rows] = 0
