"""Ranks average their gradients while the backward pass still runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from test_ranks import FOLDER, start


@pytest.mark.slow
def test_the_first_average_starts_before_the_last_backward_operation(tmp_path: Path) -> None:
    """And only the last of several micro-batches sends anything."""
    (tmp_path / "run").mkdir()
    start(FOLDER / "traced_ranks.py", 2, str(tmp_path))
    for rank in range(2):
        events = json.loads((tmp_path / f"rank{rank}.json").read_text())["traceEvents"]
        events = [event for event in events if event.get("ph") == "X"]
        backward = [e["ts"] for e in events if e["name"].startswith("autograd::engine::evaluate_function")]
        sent = [e["ts"] for e in events if "allreduce" in e["name"]]
        losses = [e["ts"] for e in events if e["name"].endswith("NllLossBackward0")]
        assert losses and max(losses) < min(sent) < max(backward)
