"""Every study under experiments/: its command runs at two steps a run, and its cluster preset composes."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from unittest.mock import patch

import pytest
from hydra import compose, initialize_config_dir
from sklearn.datasets import load_digits
from sklearn.utils import Bunch

from tests import small
from tests.experiments.commands import ROOT, answer, jobs, run
from tests.recipe.presets import Planned, Preset, build, composed, plan_update, table
from varlab.cli.app import conf_dir
from varlab.cli.main import main
from varlab.run.names import run_path

STUDIES = sorted(file.parent.name for file in (ROOT / "experiments").glob("*/run.sh"))
SHARED = [study for study in STUDIES if "common.sh" in (ROOT / "experiments" / study / "run.sh").read_text()]

TABLES = {
    study: re.findall(r"<!-- (\w\S*) -->", (ROOT / "experiments" / study / "README.md").read_text()) for study in SHARED
}


@pytest.fixture(scope="module")
def few_digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ``varlab pack source=digits`` leaves where scikit-learn has only 200 digits: tables need runs, not good ones."""
    folder, all_digits = tmp_path_factory.mktemp("digits"), load_digits()
    few = Bunch(**{**all_digits, "images": all_digits.images[:200], "target": all_digits.target[:200]})
    with patch("sklearn.datasets.load_digits", lambda: few), small.inside(folder):
        assert main(["pack", "source=digits"]) == 0
    return folder / "runs" / "data"


@pytest.fixture
def place(few_digits: Path, tmp_path: Path):
    """A folder of its own, with the shards of a few digits."""
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "data").symlink_to(few_digits)
    with small.inside(tmp_path):
        yield tmp_path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("study", "data"), [*((study, "digits") for study in SHARED), ("raster_vs_next_scale", "photos")]
)
def test_a_study_runs_as_written(study: str, data: str, place: Path) -> None:
    readme = place / "README.md"
    shutil.copy(ROOT / "experiments" / study / "README.md", readme)
    seeds = "0,1" if study == "downsampling" else "0"
    settings = {"README": str(readme), "N": "40", "SEEDS": seeds, "LAUNCH": "local", "SET": data}
    run(ROOT / "experiments" / study / "run.sh", lambda command: answer(command, place / "conf"), place, **settings)
    text = readme.read_text()
    tables = [name for name in TABLES[study] if name.startswith(data)]
    assert tables
    for name in tables:
        table = text.partition(f"<!-- {name} -->")[2].partition(f"<!-- /{name} -->")[0]
        assert "| seeds |" in table and "–" not in table, (name, table)
        assert ("paired over 2 seeds" in table) == (seeds == "0,1" and table.count("\n| ") > 2), (name, table)


@pytest.mark.parametrize(
    ("study", "data"),
    [
        ("raster_vs_next_scale", "digits"),
        *(pytest.param(study, "imagenet", marks=pytest.mark.slow) for study in SHARED),
    ],
)
def test_every_command_composes(study: str, data: str, tmp_path: Path) -> None:
    """Jobs of every command, at the papers' sizes (imagenet) and here; nothing is run.

    Each choice of a group and each other key occur in a job."""
    composed = 0

    def compose_all(command: list[str]) -> int:
        nonlocal composed
        if command[0] in ("train", "evaluate"):
            words = [word for word in command[1:] if word not in ("-m",) and not word.startswith("launch=")]
            for job in _covering(jobs(words)):
                config = compose(command[0], [*job, "launch=slurm"])
                composed += 1
                if command[0] == "train":
                    path = run_path(out=config.out, name=config.name, overrides=job, multirun=True)
                    path.mkdir(parents=True, exist_ok=True)
                    (path / "weights.safetensors").touch()
                    (path / "run.json").write_text(json.dumps({"overrides": job}))
                    (path / "metrics.jsonl").write_text('{"val/nll": 1.0}\n')
        return 0

    (tmp_path / "runs/imagenet/var_d16/default").mkdir(parents=True)
    (tmp_path / "runs/imagenet/var_d16/default/weights.safetensors").touch()
    with small.inside(tmp_path), initialize_config_dir(str(conf_dir()), version_base="1.3"):
        asked = run(ROOT / "experiments" / study / "run.sh", compose_all, tmp_path, SET=data, SEEDS="0")
    sent = [words for words in asked if words[0] in ("train", "evaluate")]
    assert composed and sent and (data == "digits" or all("launch=slurm" in words for words in sent))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:for .* copying from a non-meta parameter")
def test_every_cluster_preset_is_built(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of each study and recipe, at its real size on ``meta``: optimizer groups, one update's shapes, FLOPs and memory.

    Prints them as one table."""
    rows: dict[str, tuple[Preset, Planned]] = {}
    known: set[str] = set()
    tokenizers: dict[str, dict] = {}

    def add(name: str, config: dict) -> None:
        parts = ("kind", "tokenizer", "transformer", "order", "discriminator", "loss", "trainer", "tokenizer_run")
        groups = [config["task"].get(key) for key in ("label_drop", "no_decay", "stages", "optimizer")]
        signature = repr([config.get(part) for part in parts] + groups + [config["data"]["batch"]])
        if signature not in known:
            preset = build(config, tmp_path, tokenizers)
            rows[name] = preset, plan_update(preset)
            known.add(signature)

    def add_all(study: str, command: list[str]) -> int:
        if command[0] == "train":
            for job in jobs([word for word in command[1:] if word != "-m" and not word.startswith("launch")]):
                config = composed(*job)
                path = run_path(out=config["out"], name=config["name"], overrides=job, multirun=True)
                path.mkdir(parents=True, exist_ok=True)
                (path / "weights.safetensors").touch()
                if config["kind"] == "tokenizer":
                    tokenizers[str(path)] = config["tokenizer"]
                add(f"{study}: {path.relative_to('runs')}", config)
        return 0

    (tmp_path / "runs/imagenet/var_d16/default").mkdir(parents=True)
    (tmp_path / "runs/imagenet/var_d16/default/weights.safetensors").touch()
    for file in sorted((conf_dir() / "experiment" / "imagenet").glob("*.yaml")):
        add(f"imagenet/{file.stem}", composed(f"experiment=imagenet/{file.stem}"))
    with small.inside(tmp_path):
        for study in SHARED:
            script = ROOT / "experiments" / study / "run.sh"
            run(script, partial(add_all, study), tmp_path / study, SET="imagenet", SEEDS="0")
    with capsys.disabled():
        print("", table(rows), sep="\n")
    generators = [planned for preset, planned in rows.values() if preset.config["kind"] == "generator"]
    assert max(planned.memory for planned in generators) < 75 << 30  # a card of 80 GB
    assert len(rows) > 30 and all(planned.decayed <= planned.parameters for _, planned in rows.values())
    assert all(preset.config["kind"] == "tokenizer" or planned.decayed for preset, planned in rows.values())


def _covering(jobs: list[list[str]]) -> Iterator[list[str]]:
    """The jobs that have a choice of a group, or another key, which no job before them has."""
    seen: set[str] = set()
    for job in jobs:
        named = {word if (conf_dir() / word.partition("=")[0]).is_dir() else word.partition("=")[0] for word in job}
        if not seen.issuperset(named):
            yield job
        seen |= named
