"""Keys, values and modulations that sampling computes once and reads again at later steps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Cache:
    """Keys and values of the slots seen so far, layer by layer; passed in by the sampler, filled by the transformer.

    length: slots that later steps see again. Each layer allocates so many, once. Slots beyond them are seen by their own
    step and not kept: those of the last step.
    """

    length: int
    steps: list[Tensor] = field(default_factory=list)  # step_L of each call
    modulation: dict[int, Tensor] = field(default_factory=dict)  # AdaLN's, constant over a sample's steps
    _layers: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    _filled: dict[int, int] = field(default_factory=dict)
    _last: int | None = None

    @classmethod
    def of(cls, steps: Sequence[int], prefix: int) -> Cache:
        """The cache of a sampling: all slots but the last step's. prefix: slots of a condition. steps: slots of each step."""
        return cls(sum(steps[:-1]) + prefix)

    def extend(self, layer: int, k_BhLd: Tensor, v_BhLd: Tensor) -> tuple[Tensor, Tensor]:
        """Append one layer's keys and values; returns all so far."""
        start = self._filled.get(layer, 0)
        end = start + k_BhLd.shape[2]
        if start == 0 and end > self.length:
            return k_BhLd, v_BhLd
        if start == 0:  # a step after the last one finds nothing here, and no memory that nobody has written
            shape = (*k_BhLd.shape[:2], self.length, k_BhLd.shape[3])
            self._layers[layer] = (k_BhLd.new_empty(shape), v_BhLd.new_empty(shape))
        keys, values = self._layers[layer]
        if end > self.length:
            del self._layers[layer]  # the last step: nobody reads these again
            return torch.cat([keys[:, :, :start], k_BhLd], 2), torch.cat([values[:, :, :start], v_BhLd], 2)
        keys[:, :, start:end], values[:, :, start:end] = k_BhLd, v_BhLd
        self._filled[layer] = end
        return keys[:, :, :end], values[:, :, :end]

    def modulated(self, layer: int, make: Callable[[], Tensor]) -> Tensor:
        """A layer's modulation, made once."""
        if layer not in self.modulation:
            self.modulation[layer] = make()
        return self.modulation[layer]

    def see(self, step_L: Tensor) -> Tensor | None:
        """Note the steps of the new slots; returns those of all so far, or None if the new ones see all slots."""
        low, high = (int(step) for step in step_L.aminmax())
        last = self._last
        self._last = high if last is None else max(last, high)
        self.steps.append(step_L)
        return None if low == high and (last is None or last <= low) else torch.cat(self.steps)

    def keep(self, batch: int) -> None:
        """Drop all but the first ``batch`` samples: from now on, only these go on."""
        self._layers = {layer: (keys[:batch], values[:batch]) for layer, (keys, values) in self._layers.items()}
        self.modulation = {layer: made[:batch] for layer, made in self.modulation.items()}
