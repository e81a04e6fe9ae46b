"""Recording and replaying a function, with a stand-in for CUDA graphs that does the recorded work again."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from varlab.sample.replay import Replay, called


class OnCard(Tensor):
    """A tensor that says it is on a GPU."""

    is_cuda = True  # type: ignore[assignment]


def card(*numbers: float) -> Tensor:
    return torch.tensor(numbers).as_subclass(OnCard)


class Work:
    """Doubles its first input and adds its second, into memory of its own, and counts how often it was called."""

    def __init__(self) -> None:
        self.calls, self.recording = 0, False

    def __call__(self, x: Tensor, y: Tensor | None) -> Tensor:
        self.calls += 1
        return x * 2 if y is None else x * 2 + y


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The graphs made so far; each counts its replays, which compute from the recorded inputs."""
    made: list[Any] = []
    streams: list[object] = []

    class Graph:
        def __init__(self) -> None:
            self.replays, self.work = 0, lambda: None
            made.append(self)

        def replay(self) -> None:
            self.replays += 1
            self.work()

    @contextmanager
    def record(graph: Graph, **settings: Any) -> Iterator[None]:
        assert settings == {"capture_error_mode": "thread_local"}
        yield

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "stream")
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: streams.append(stream))
    monkeypatch.setattr(torch.cuda, "graph", record)
    return made


def test_the_second_call_records_and_later_ones_replay(graphs: list[Any]) -> None:
    work, replay = Work(), Replay()
    first = replay(work, card(1, 2), None)
    assert first.tolist() == [2, 4] and not graphs
    replay(work, card(1, 2), None)
    assert len(graphs) == 1 and graphs[0].replays == 1 and work.calls == 2
    graphs[0].work = lambda: replay._output.copy_(replay._inputs[0] * 2)  # type: ignore[union-attr,operator]
    results = [replay(work, card(n, n + 1), None) for n in range(3)]
    assert [result.tolist() for result in results] == [[0, 2], [2, 4], [4, 6]]  # each in memory of its own
    assert graphs[0].replays == 4 and work.calls == 2


@pytest.mark.parametrize("change", ["shape", "input", "weights", "work"])
def test_other_shapes_and_moved_weights_are_recorded_anew(change: str, graphs: list[Any]) -> None:
    work, replay, module = Work(), Replay(), nn.Linear(2, 2)
    for _ in range(3):
        replay(work, card(1, 2), None, of=[module])
    x, y = card(1, 2, 3) if change == "shape" else card(1, 2), card(1, 1) if change == "input" else None
    if change == "weights":
        kept = module.weight.data  # its memory stays in use, so the copy lies elsewhere
        module.weight.data = kept.clone()
    work = Work() if change == "work" else work
    assert len(graphs) == 1
    assert replay(work, x, y, of=[module]).tolist() == (x * 2 if y is None else x * 2 + y).tolist()
    assert len(graphs) == 1  # called
    replay(work, x, y, of=[module])
    assert len(graphs) == 2 and graphs[1].replays == 1


def test_weights_that_change_where_they_lie_are_not(graphs: list[Any]) -> None:
    work, replay, module = Work(), Replay(), nn.Linear(2, 2)
    for _ in range(4):
        replay(work, card(1, 2), None, of=[module])
        with torch.no_grad():
            module.weight.mul_(2)
    assert len(graphs) == 1 and graphs[0].replays == 3


def test_work_that_cannot_be_recorded_is_called(monkeypatch: pytest.MonkeyPatch, graphs: list[Any]) -> None:
    @contextmanager
    def refuse(graph: Any, **settings: Any) -> Iterator[None]:
        yield
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(torch.cuda, "graph", refuse)
    work, replay = Work(), Replay()
    assert [replay(work, card(1, 2), card(n)).tolist() for n in range(4)] == [[2 + n, 4 + n] for n in range(4)]
    assert len(graphs) == 1  # asked once
    assert called(work, card(1), None, of=[nn.Linear(1, 1)]).tolist() == [2]
