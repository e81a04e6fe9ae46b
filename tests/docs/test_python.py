"""The examples of docs/python.md and docs/lightning.md run as they are written there, but for their size."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT


def blocks(page: str) -> list[str]:
    text = (ROOT / "docs" / page).read_text()
    return [
        block for block in re.findall(r"^```python\n(.*?)^```$", text, flags=re.M | re.S) if "# my_conf/" not in block
    ]


def run(block: str, replaced: dict[str, str]) -> dict[str, Any]:
    """The names that an example defines."""
    for before, after in replaced.items():
        assert before in block
        block = block.replace(before, after)
    names: dict[str, Any] = {}
    exec(compile(block, "docs", "exec"), names)
    return names


def test_a_run_in_python(lab: Path) -> None:
    names = run(blocks("python.md")[0], {"runs/demo/generator/order=next_scale": "runs/next_scale"})
    assert names["again"].shape == names["img_B3HW"].shape == (3, 3, 16, 16)
    assert names["logits_BLV"].shape == (3, 30, 32) and names["named"].shape == (2, 3, 16, 16)


def test_a_model_without_a_run() -> None:
    small = {
        "VQTokenizer()": "VQTokenizer(channels=32)",
        "num_classes=1000": "num_classes=9, width=64, depth=1, heads=1",
    }
    model = run(blocks("python.md")[1], small)["model"]
    assert model.sample([8], top_k=1).shape == (1, 3, 256, 256)


def test_a_plain_trainer(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = str(lab.resolve() / "data" / "source=digits")
    monkeypatch.chdir(tmp_path)
    small = {"runs/data/source=digits": data, "max_epochs=4": "max_epochs=1", "max_epochs=6": "max_epochs=2"}
    run(blocks("lightning.md")[-1], small)
    assert Path("saved/last.ckpt").is_file()
