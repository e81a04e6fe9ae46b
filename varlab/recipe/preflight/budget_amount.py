"""The length of a training as the configuration asks for it."""

from __future__ import annotations

import math

from varlab.config import Config
from varlab.errors import VarlabError


def asked_budget(budget: Config) -> tuple[str, float]:
    """Return the one of images, flops and seconds that is given, and its value. Raises VarlabError for any other budget."""
    asked = {name: value for name, value in budget.items() if value is not None}
    if len(asked) != 1:
        raise VarlabError(
            "Give the length of the training: one of budget.images=N, budget.flops=F and budget.seconds=S."
        )
    ((name, value),) = asked.items()
    if not isinstance(value, int | float) or not 0 < value < math.inf:
        raise VarlabError(f"budget.{name} is {value}, but it must be a number above 0.")
    return name, value
