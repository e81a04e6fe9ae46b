"""``varlab check``: a class or a YAML of one's own, the law that it breaks, and what cannot be checked."""

from __future__ import annotations

from pathlib import Path

import pytest

from varlab.cli.main import main

MODULE = """
import torch

from varlab.order import NextScale
from varlab.tokenizer import VQTokenizer


def columns(h, w):
    return torch.arange(h * w).view(h, w).T.reshape(-1)


class Backwards(NextScale):
    def finish(self, state):
        return super().finish(state)[::-1]


class Mine(VQTokenizer):
    def __init__(self, *, loud=1, **settings):
        super().__init__(channels=8, channel_mult=(1, 2), groups=4, attention=(), scales=[[2, 2]], vocab_size=8, code_dim=4)
        self.loud = loud

    def decode(self, f_hat_BChw):
        return super().decode(f_hat_BChw) * self.loud
"""


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a module, and YAML of its order."""
    (tmp_path / "parts_to_check.py").write_text(MODULE)
    (tmp_path / "conf" / "order").mkdir(parents=True)
    path = "{_target_: parts_to_check.columns, _partial_: true}"
    (tmp_path / "conf" / "order" / "columns.yaml").write_text(f"_target_: varlab.order.Permutation\npath: {path}\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)  # undone after the test, as is what the command adds
    return tmp_path


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("parts_to_check:Mine",), 0, "tokenizer parts_to_check.Mine keeps its contract"),
        (("parts_to_check:Mine", "+arguments.loud=3"), 1, r"Mine.decode must clamp to [-1, 1]"),
        (("parts_to_check:Backwards",), 1, "Backwards.finish gives other maps"),
        (("order=columns", "--config-dir", "conf"), 0, "((4, 4),) and ((1, 1), (2, 2), (3, 3), (4, 4))"),
        (("order=next_scale", "tokenizer=single"), 1, "needs a tokenizer of several scales"),
        (("condition=coordinates",), 0, "keeps its contract"),
        (("source=digits",), 0, "keeps its contract"),
        (("torchmetrics.image:PeakSignalNoiseRatio", "+arguments.data_range=1.0"), 0, "metric torchmetrics.image"),
        (("parts_to_check:columns",), 1, "is none of order, tokenizer, source"),
        (("parts_to_check:Nothing",), 1, "cannot be imported"),
        (("extractor=classifier",), 1, "check a class by module:NAME"),
        ((), 1, "Name what to check"),
    ],
)
def test_check(words: tuple[str, ...], code: int, said: str, mine: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", *words]) == code
    assert said in capsys.readouterr().err
    assert {path.name for path in mine.iterdir()} <= {"parts_to_check.py", "conf", "__pycache__"}
