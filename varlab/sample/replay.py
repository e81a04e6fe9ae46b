"""Work that a GPU does again and again with tensors of the same shapes, as one CUDA graph."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

log = logging.getLogger(__name__)

Work: TypeAlias = Callable[..., Tensor]
_Key: TypeAlias = tuple[object, ...]


def called(work: Work, *inputs: Tensor | None, of: Sequence[nn.Module] = ()) -> Tensor:
    """``work(*inputs)``: what takes the place of a ``Replay``."""
    return work(*inputs)


class Replay:
    """Calls a function of tensors. On a GPU the second call with the same shapes records what it launches, and all later ones
    launch that in one go: a sampling has thousands of small kernels, and to launch one takes longer than to run it.

    The function must read nothing but its inputs and the weights of modules, and never wait for the device; one that waits is
    called as it is. Only the last recording is kept.
    """

    def __init__(self) -> None:
        self._seen: set[_Key] = set()
        self._refused: set[_Key] = set()
        self._key: _Key | None = None
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor | None] = []
        self._output: Tensor | None = None

    def __call__(self, work: Work, *inputs: Tensor | None, of: Sequence[nn.Module] = ()) -> Tensor:
        """``work(*inputs)``, in memory of its own. of: the modules, whose weights may change where they lie."""
        if not any(given is not None and given.is_cuda for given in inputs):
            return work(*inputs)
        shapes = tuple(None if x is None else (x.shape, x.dtype, x.device) for x in inputs)
        places = tuple(weight.data_ptr() for module in of for weight in module.parameters())
        key = (work, shapes, places, torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda"))
        if key in self._refused or key not in self._seen:
            self._seen.add(key)
            return work(*inputs)
        if key != self._key and not self._record(key, work, inputs):
            return work(*inputs)
        return self.replayed(*inputs)

    def replayed(self, *inputs: Tensor | None) -> Tensor:
        """What the recorded work makes of these inputs."""
        assert self._graph is not None and self._output is not None
        for mine, given in zip(self._inputs, inputs, strict=True):
            if mine is not None and given is not None:
                mine.copy_(given)
        self._graph.replay()
        return self._output.clone()

    def _record(self, key: _Key, work: Work, inputs: tuple[Tensor | None, ...]) -> bool:
        """Record the work; returns whether it can be recorded and there is memory for it."""
        self._key = self._graph = self._output = None
        graph, copies = torch.cuda.CUDAGraph(), [None if x is None else x.clone() for x in inputs]
        stream = torch.cuda.current_stream()
        torch.clear_autocast_cache()  # weights that were cast before lie where nobody keeps them
        try:
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                output = work(*copies)
        except RuntimeError as error:  # also out of memory
            log.info("This work is not replayed as a CUDA graph: %s", error)
            self._refused.add(key)
            return False
        finally:
            torch.cuda.set_stream(stream)  # a recording that fails leaves its own
            torch.clear_autocast_cache()
        self._key, self._graph, self._inputs, self._output = key, graph, copies, output
        return True
