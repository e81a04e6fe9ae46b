"""An exponential moving average of a module's weights: what is evaluated, sampled from and exported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from varlab.tasks.distributed import fsdp


class EMA:
    """The average after n updates moves by 1 - min(decay, (1 + n) / (10 + n)): it soon forgets the initial weights.

    Float tensors (parameters and buffers) are averaged in float32; others (counters) are copied. The tensors are its
    own: they are no part of the module's state dict. decay 0 is no average: nothing is kept or copied, and the weights are
    the module's own (the public VAR, VQGAN and LlamaGen trainings have none).
    """

    def __init__(self, module: nn.Module, *, decay: float):
        self.decay = decay
        self.updates = 0
        self._shadow = {name: _own(tensor) for name, tensor in module.state_dict().items()} if decay else {}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Take in the weights as one update has left them."""
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        self.updates += 1
        if not self.decay:
            return
        averages, weights = [], []
        for name, tensor in module.state_dict().items():
            if tensor.is_floating_point():
                averages.append(self._on(name, tensor))
                weights.append(tensor.float())
            else:
                self._shadow[name] = _own(tensor)
        torch._foreach_lerp_(averages, weights, 1 - decay)

    def _on(self, name: str, tensor: Tensor) -> Tensor:
        """The average, on the device where the module is by now."""
        if self._shadow[name].device != tensor.device:
            self._shadow[name] = self._shadow[name].to(tensor.device)
        return self._shadow[name]

    @torch.no_grad()
    def overwrite(self, name: str, rows: Tensor, values: Tensor) -> None:
        """Set some rows of one average, for weights that were replaced and not trained (revived codes)."""
        if self.decay:
            self._on(name, values)[rows] = values.float()

    def weights(self, module: nn.Module) -> dict[str, Tensor]:
        """A state dict of averages in the module's own types; the module's weights where there is no average (yet)."""
        state = module.state_dict()
        return {name: self._on(name, t).to(t.dtype) for name, t in state.items()} if self._averages else dict(state)

    @property
    def _averages(self) -> bool:
        return self.decay > 0 and self.updates > 0

    @contextmanager
    def swap(self, module: nn.Module) -> Iterator[None]:
        """The module with averaged weights inside the block, and with its own, to the last bit, after it."""
        if not self._averages:
            yield
            return
        own = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        _copy(self.weights(module), module)
        try:
            yield
        finally:
            _copy(own, module)

    def state(self) -> dict[str, object]:
        """For a checkpoint."""
        return {"updates": self.updates, "weights": dict(self._shadow)}

    def load_state(self, state: Mapping) -> None:
        """Take up where ``state`` left off."""
        self.updates = int(state["updates"])
        if not self.decay:  # a checkpoint of an earlier version holds a copy of the weights here
            return
        for name, tensor in state["weights"].items():
            self._shadow[name] = fsdp.like(tensor, self._shadow[name]).to(self._shadow[name].device).clone()


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().float().clone() if tensor.is_floating_point() else tensor.detach().clone()


@torch.no_grad()
def _copy(state: Mapping[str, Tensor], module: nn.Module) -> None:
    for name, tensor in module.state_dict().items():
        tensor.copy_(state[name])
