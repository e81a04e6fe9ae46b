"""Gradients that are averaged over the ranks while the backward pass which makes them still runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from functools import partial

from torch import nn

from varlab.tasks.distributed.collectives import Averaging, buckets

_FIRST, _REST = 1 << 18, 1 << 22  # elements of a bucket: the first one is small, so that it is sent early
_IN_FLIGHT = 2  # buckets that are on their way at once: each holds a copy of its gradients


class BackwardAverage:
    """Averages the gradients of an update's last backward pass, bucket by bucket.

    The last parameters of a module get their gradients first, so they are in the first bucket. A bucket is sent when its
    gradients are complete and the buckets before it are sent: all ranks send in the same order. Buckets depend on the
    parameters alone. (DDP forms new buckets after its first backward pass. The sum of three or more ranks depends on a
    number's place in its bucket, so a resumed run would get other bits.)
    """

    def __init__(self, parameters: Iterable[nn.Parameter]):
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        self._buckets = buckets(trained[::-1], first=_FIRST, rest=_REST)
        self._missing: list[int] = []  # gradients, of each bucket
        self._sent = 0
        self._pending: deque[Averaging] = deque()
        for number, bucket in enumerate(self._buckets):
            for parameter in bucket:
                parameter.register_post_accumulate_grad_hook(partial(self._receive, number))

    def begin(self) -> None:
        """Average the gradients of the next backward pass; those of other passes stay as they are."""
        self._missing, self._sent = [len(bucket) for bucket in self._buckets], 0
        self._pending.clear()

    def _receive(self, number: int, parameter: nn.Parameter) -> None:
        if self._missing:
            self._missing[number] -= 1
            while self._sent < len(self._buckets) and self._missing[self._sent] == 0:
                self._send()

    def _send(self) -> None:
        grads = [parameter.grad for parameter in self._buckets[self._sent] if parameter.grad is not None]
        self._sent += 1
        if grads:
            self._pending.append(Averaging(grads))
        if len(self._pending) > _IN_FLIGHT:
            self._pending.popleft().finish()

    def finish(self) -> None:
        """Wait for the averages. Parameters that the pass did not reach keep what earlier passes left, averaged too."""
        while self._sent < len(self._buckets):
            self._send()
        while self._pending:
            self._pending.popleft().finish()
        self._missing = []
