"""Every example of docs/extending.md works from outside the package, as it is written there, but for its size."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import varlab
from tests import small
from tests.conftest import ROOT
from varlab.checkpoint import read_weights
from varlab.cli.main import main
from varlab.data.format.index import read_index

TEXT = (ROOT / "docs" / "extending.md").read_text()
SMALLER = {
    "train": ["data.batch=8", "data.workers=0", "log.every=8", "pictures.count=2", "trainer.precision=32-true"],
    "sample": ["n=4", "grown=1"],
    "edit": ["n=1"],
    "evaluate": ["n=16", "metrics.splits=2", "metrics.draws=2"],
    "pack": ["workers=0", "source.count=24"],
    "report": [],
    "check": [],
}
"""Overrides with which an example takes a second."""


def sections() -> dict[str, str]:
    """The text of each part, by its heading; the one above all headings belongs to the order."""
    first, *rest = re.split(r"^## ", TEXT, flags=re.M)
    parts = {part.partition("\n")[0]: part for part in rest}
    return parts | {"Order": first + parts["Order"]}


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, flags=re.M | re.S)


def run(section: str) -> None:
    """Run the commands of a section at a small size."""
    for line in blocks(sections()[section], "bash"):
        for command in line.replace("\\\n", " ").splitlines():
            program, name, *arguments = shlex.split(command, comments=True)
            arguments = [re.sub(r"^budget\.images=.*", "budget.images=16", word) for word in arguments]
            assert program == "varlab" and main([name, *arguments, *SMALLER[name]]) == 0, command


@pytest.fixture(scope="module")
def folder(world_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the small world with the examples' files, and a photo; none of the files can be imported from elsewhere."""
    folder = Path(shutil.copytree(world_folder, tmp_path_factory.mktemp("extending") / "world"))
    for block in blocks(TEXT, "python") + blocks(TEXT, "yaml"):
        if named := re.search(r"^# (my_conf/\S+)$", block, flags=re.M):
            file = folder / named[1]
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block)
    Image.fromarray(np.full((32, 32, 3), 200, dtype=np.uint8)).save(folder / "photo.png")
    return folder


@pytest.fixture
def lab(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Its runs/, with the folder above as the current one."""
    assert not any(path.rstrip("/").endswith("my_conf") for path in sys.path)
    with small.inside(folder):
        yield folder / "runs"


@pytest.fixture
def imported(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the page says for Python: the folder is on ``sys.path``."""
    monkeypatch.syspath_prepend(str(Path("my_conf").resolve()))


@pytest.fixture
def columns(lab: Path) -> Path:
    """The run that other examples score and sample."""
    if not (lab / "mine" / "columns").is_dir():
        run("Order")
    return lab / "mine" / "columns"


def scores(folder: Path, **protocol: object) -> dict[str, dict[str, float]]:
    """The one score file whose protocol has these values."""
    files = [json.loads(file.read_text()) for file in (folder / "scores").glob("*.json")]
    (found,) = [file for file in files if protocol.items() <= file["protocol"].items()]
    return found


def test_order(columns: Path, imported: None) -> None:
    order = varlab.load(columns, trust=True).generator()[1]
    path_BP = order.path_BP(1, torch.device("cpu"), None)  # type: ignore[attr-defined]
    assert path_BP[0, :5].tolist() == [0, 4, 8, 12, 1] and small.record(columns)["choices"]["order"] == "columns"


def refused_export(run: Path, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(["export", "--config-dir", "my_conf", str(run), "format=var", f"out={run}-exported"]) == 1
    return capsys.readouterr().err


def test_tokenizer(lab: Path, imported: None, capsys: pytest.CaptureFixture[str]) -> None:
    run("Tokenizer")
    model = varlab.load(lab / "mine" / "on_patches", trust=True)
    img_B3HW = model.sample([1, 2])
    assert type(model.tokenizer).__name__ == "Patches" and img_B3HW.shape == (2, 3, 16, 16)
    flops = 2 * 16 * (48 * 16 + 16 * 128)  # each patch is projected, and compared with every code
    assert small.record(lab / "mine" / "on_patches")["cost"]["encode_flops_per_image"] == flops
    assert "it is a Patches." in refused_export(lab / "mine" / "on_patches", capsys)


@pytest.mark.slow
def test_quantizer(lab: Path, imported: None, capsys: pytest.CaptureFixture[str]) -> None:
    run("Quantizer")
    codes = read_weights(lab / "mine" / "fixed" / "weights_raw.safetensors")["quantizer.codebook.weight"]
    before = varlab.load(lab / "mine" / "fixed", trust=True).tokenizer.quantizer
    assert type(before).__name__ == "FixedCodes" and codes.abs().max() > 0.9  # trained ones begin within 1/128
    assert "a quantizer of its own, my_quantizer.FixedCodes" in refused_export(lab / "mine" / "fixed", capsys)


@pytest.mark.slow
def test_condition(lab: Path, imported: None) -> None:
    run("Condition")
    model = varlab.load(lab / "mine" / "brightness", trust=True)
    bright_B3HW = torch.ones(2, 3, 16, 16)
    assert model.condition_tokens(img_B3HW=bright_B3HW).tolist() == [[15], [15]]
    assert model.transformer.cond_tokens == 1  # type: ignore[union-attr]
    assert small.record(lab / "sample" / sampled(lab, "brightness"))["outcome"]["n"] == 4
    arguments = ["--config-dir", "my_conf", *SMALLER["evaluate"]]
    assert main(["evaluate", str(lab / "mine" / "brightness"), *arguments]) == 0
    assert scores(lab / "mine" / "brightness", conditions="Brightness of val, cyclic")["scores"]["val_nll"] > 0


def sampled(lab: Path, name: str) -> str:
    """The folder of the samples of a run."""
    (found,) = (path.name for path in (lab / "sample").iterdir() if name in path.name)
    return found


@pytest.mark.slow
def test_extractor(columns: Path) -> None:
    run("Extractor")
    scored = scores(columns, extractor="thumbnail", extractor_hash="thumbnail-1")["scores"]
    assert scored["fid"] > 0 and "inception_score" not in scored


@pytest.mark.slow
def test_perceptual_loss(lab: Path) -> None:
    run("Perceptual loss")
    assert small.curve(lab / "mine" / "edges", "train/perceptual")[0] > 0
    assert "perceptual" not in small.record(lab / "mine" / "edges")["parents"]
    assert main(["evaluate", "--config-dir", "my_conf", "runs/mine/edges", *SMALLER["evaluate"]]) == 0
    assert scores(lab / "mine" / "edges", perceptual="edges-1")["scores"]["perceptual"] > 0


def test_kind_of_training(lab: Path) -> None:
    run("Kind of training")
    ink = lab / "mine" / "ink"
    assert small.record(ink)["config"]["kind"] == "ink" and small.curve(ink, "val/error")[-1] > 0
    assert (ink / "last.ckpt").is_file() and (ink / "weights.safetensors").is_file()
    page = Path("runs/report/report.html").read_text()
    assert "<h2>Ink</h2>" in page and "error, as its own metric or training defines it" in page


@pytest.mark.slow
def test_logger(lab: Path) -> None:
    run("Logger")
    logged = lab / "mine" / "logged"
    lines = (logged / "lines.txt").read_text().splitlines()
    assert any("train/loss=" in line for line in lines) and any("val/loss=" in line for line in lines)
    assert list(logged.rglob("metrics.csv")) and not list(logged.rglob("events.out*"))


@pytest.mark.slow
def test_callback(lab: Path) -> None:
    run("Callback")
    assert float((lab / "mine" / "norm" / "norm.txt").read_text()) > 0
    assert small.curve(lab / "mine" / "norm", "train/loss")


def test_source(lab: Path) -> None:
    run("Source")
    index = read_index(lab / "data" / "stripes")
    assert index.info.classes == ("horizontal", "vertical") and index.info.counts == {"train": 20, "val": 4}


def test_metric(columns: Path) -> None:
    run("Metric")
    found = next(
        file for file in map(json.loads, (f.read_text() for f in (columns / "scores").iterdir())) if "best" in file
    )
    assert found["scores"]["sharpness"] > 0 and found["best"] == {"sharpness": "max"}
    assert "my_metric.Sharpness" in json.dumps(found["protocol"]["metrics"])
    assert main(["report", str(columns), "out=runs/report"]) == 0
    assert "sharpness" in Path("runs/report/report.html").read_text()
    assert "sharpness" in Path("runs/report/results.csv").read_text().splitlines()[0]


@pytest.mark.slow
def test_sampler(columns: Path) -> None:
    run("Sampler")
    settings = small.record(Path("runs/sample") / sampled(Path("runs"), "min_p"))["outcome"]["sampler"]
    assert settings["min_p"] == 0.2 and settings["_target_"] == "my_sampler.MinP"
    surest = [*SMALLER["sample"], "sampler=min_p", "sampler.min_p=1.0"]  # the seed has nothing to decide
    for seed in (0, 1):
        out = f"out=runs/surest/{seed}"
        assert main(["sample", "--config-dir", "my_conf", str(columns), *surest, f"seed={seed}", out]) == 0
    first, second = (np.load(f"runs/surest/{seed}/samples.npz")["arr_0"] for seed in (0, 1))
    assert (first == second).all()


@pytest.mark.slow
def test_optimizer(lab: Path) -> None:
    run("Optimizer")
    state = torch.load(lab / "mine" / "lion" / "last.ckpt", weights_only=True)
    assert "mean" in json.dumps(state, default=lambda value: str(type(value)))


@pytest.mark.slow
def test_does_it_keep_the_contract(lab: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("Does it keep the contract?")
    parts = ("tokenizer=fixed", "extractor=thumbnail", "perceptual=edges", "source=stripes", "my_metric:Sharpness")
    for part in parts:
        assert main(["check", "--config-dir", "my_conf", part]) == 0
    said = capsys.readouterr()
    assert (said.out + said.err).count("keeps its contract") == 4 + len(parts)


def test_every_part_is_tested(request: pytest.FixtureRequest) -> None:
    tests: set[str] = {
        name for name, value in globals().items() if name.startswith("test_") and isinstance(value, Callable)
    }  # type: ignore[arg-type]
    assert {f"test_{heading.lower().replace(' ', '_').rstrip('?')}" for heading in sections()} <= tests
