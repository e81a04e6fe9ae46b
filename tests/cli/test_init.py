"""``init=DIR``: training that goes on from another run's weights, an imported one's too, at its own or another resolution."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import varlab
from tests import small
from varlab.cli.main import main

STILL = ("task.optimizer.lr=0", "budget.images=32", "task.ema_decay=0.0")  # an update that changes nothing


def same_weights(a: Path, b: Path, name: str = "weights_raw.safetensors") -> bool:
    one, other = load_file(a / name), load_file(b / name)
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("name", ["next_scale", "raster"])
def test_a_generator_starts_from_weights_and_architecture(name: str, lab: Path, tmp_path: Path) -> None:
    """Whatever transformer= says."""
    asked = ["task=generator", f"order={name}", f"init={lab / name}", *small.FAST, "data.batch=32", *STILL]
    assert small.train(tmp_path / "run", *asked) == 0
    assert same_weights(tmp_path / "run", lab / name)
    assert same_weights(tmp_path / "run", lab / name, "tokenizer.safetensors")
    record = small.record(tmp_path / "run")
    assert record["parents"]["init"]["run"] == str(lab / name)
    assert record["build"]["transformer"]["width"] == 32


def test_a_tokenizer_starts_from_weights(lab: Path, tmp_path: Path) -> None:
    rest = [word for word in small.RUNS["multi"] if not word.startswith("tokenizer")]
    asked = [*rest, f"init={lab / 'multi'}", *STILL, "task.revival=null", "loss.gan.start=1000"]
    assert small.train(tmp_path / "run", *asked) == 0
    assert same_weights(tmp_path / "run", lab / "multi")


def test_training_goes_on_from_an_import(lab: Path, tmp_path: Path) -> None:
    """Ours, exported as VAR's and taken in again; raw and averaged weights of an import are the same."""
    assert main(["export", str(lab / "next_scale"), "format=var", "weights=raw", f"out={tmp_path / 'out'}"]) == 0
    files = [f"{role}={tmp_path / 'out' / role}.pth" for role in ("tokenizer", "transformer")]
    scales = "scales=[[1,1],[2,2],[3,3],[4,4]]"
    assert main(["import", "format=var", *files, scales, "groups=4", f"out={tmp_path / 'in'}"]) == 0
    asked = ["task=generator", f"init={tmp_path / 'in'}", *small.FAST, "data.batch=32", "budget.images=64"]
    assert small.train(tmp_path / "run", *asked) == 0
    assert varlab.load(tmp_path / "run").sample([1], seed=0).shape == (1, 3, 16, 16)
    assert not same_weights(tmp_path / "run", tmp_path / "in")


@pytest.mark.slow
def test_another_resolution(lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The tokenizer at other scales, the transformer's positions interpolated, and the log says so."""
    assert main(["pack", "source=digits", "source.size=32", f"out={tmp_path / 'data'}"]) == 0
    scales = "tokenizer_scales=[[1,1],[2,2],[4,4],[8,8]]"
    common = [*small.FAST, f"data.path={tmp_path / 'data'}", "data.batch=32", *STILL, scales]
    asked = ["task=generator", f"init={lab / 'next_scale'}", *common]
    assert small.train(tmp_path / "run", *asked) == 0
    assert "positions and levels interpolated" in capsys.readouterr().err
    model = varlab.load(tmp_path / "run")
    assert model.sample([3], seed=1).shape == (1, 3, 32, 32)
    before, after = (load_file(path / "weights_raw.safetensors") for path in (lab / "next_scale", tmp_path / "run"))
    assert after["position.weight"].shape[0] == 1 + 4 + 16 + 64
    assert torch.equal(after["position.weight"][:5], before["position.weight"][:5])
    assert torch.equal(after["head.weight"], before["head.weight"])


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (["task=generator", "init=runs/multi"], "init=runs/multi is the run of a tokenizer"),
        (["task=tokenizer", "init=runs/raster"], "init=runs/raster is the run of a generator"),
        (["task=generator", "init=runs/nowhere"], "not a run directory"),
    ],
)
def test_what_cannot_be_started_from_is_said(asked, says, lab: Path, tmp_path: Path, capsys) -> None:
    with small.inside(lab.parent):
        assert main(["train", *asked, "budget.images=32", f"out={tmp_path / 'run'}"]) == 1
    assert says in capsys.readouterr().err


def test_a_start_that_changed_is_refused_on_resuming(lab: Path, tmp_path: Path, capsys) -> None:
    start = tmp_path / "start"
    shutil.copytree(lab / "next_scale", start)
    asked = ["task=generator", f"init={start}", *small.FAST, "data.batch=32", "budget.images=64"]
    assert small.train(tmp_path / "run", *asked) == 0
    record = small.record(tmp_path / "run")
    record["outcome"]["state"] = "failed"
    (tmp_path / "run" / "run.json").write_text(__import__("json").dumps(record))
    shutil.copy(lab / "next_scale" / "weights.safetensors", start / "weights_raw.safetensors")
    assert small.train(tmp_path / "run", *asked) == 1
    assert "have changed since" in capsys.readouterr().err
