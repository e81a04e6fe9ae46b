"""The exponential moving average of a module's weights, which is evaluated, sampled from and exported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from varlab.config import Config
from varlab.tasks.distributed import fsdp


class EMA:
    """An average that moves by 1 - min(decay, (1 + n) / (10 + n)) after n updates, so it soon forgets the initial weights.

    Float tensors (parameters and buffers) are averaged in float32; others (counters) are copied. The averages are not part
    of the module's state dict. decay 0 means no average: nothing is stored, and ``weights`` are the module's own (the public
    VAR, VQGAN and LlamaGen trainings have no average).
    """

    def __init__(self, module: nn.Module, *, decay: float):
        self.decay = decay
        self.updates = 0
        self._shadow = {name: _own(tensor) for name, tensor in module.state_dict().items()} if decay else {}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Add the weights after an update."""
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
        """The average, moved to the device of the module."""
        if self._shadow[name].device != tensor.device:
            self._shadow[name] = self._shadow[name].to(tensor.device)
        return self._shadow[name]

    @torch.no_grad()
    def overwrite(self, name: str, rows: Tensor, values: Tensor) -> None:
        """Set some rows of one average, for weights that were replaced instead of trained (revived codes)."""
        if self.decay:
            self._on(name, values)[rows] = values.float()

    def weights(self, module: nn.Module) -> dict[str, Tensor]:
        """A state dict of averages in the module's types; the module's own weights if there is no average (yet)."""
        state = module.state_dict()
        return {name: self._on(name, t).to(t.dtype) for name, t in state.items()} if self._averages else dict(state)

    @property
    def _averages(self) -> bool:
        return self.decay > 0 and self.updates > 0

    @contextmanager
    def swap(self, module: nn.Module) -> Iterator[None]:
        """Put averaged weights into the module inside the block, and restore its own exactly afterwards."""
        if not self._averages:
            yield
            return
        own = {name: tensor.clone() for name, tensor in module.state_dict().items()}
        _copy(self.weights(module), module)
        try:
            yield
        finally:
            _copy(own, module)

    def state(self) -> Config:
        """For a checkpoint."""
        return {"updates": self.updates, "weights": dict(self._shadow)}

    def load_state(self, state: Config) -> None:
        """Restore ``state``."""
        self.updates = int(state["updates"])
        if not self.decay:  # checkpoints of earlier versions hold a copy of the weights here
            return
        for name, tensor in state["weights"].items():
            self._shadow[name] = fsdp.shard_like(tensor, self._shadow[name]).to(self._shadow[name].device).clone()


def _own(tensor: Tensor) -> Tensor:
    return tensor.detach().float().clone() if tensor.is_floating_point() else tensor.detach().clone()


@torch.no_grad()
def _copy(state: Mapping[str, Tensor], module: nn.Module) -> None:
    for name, tensor in module.state_dict().items():
        tensor.copy_(state[name])
