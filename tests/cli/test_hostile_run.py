"""A stranger's run directory is data: no command runs, imports or writes what it names. All places: ``make attack``."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests import small
from tests.attack.directories import FORMATS, plant
from tests.attack.foreign_values import payloads
from tests.attack.trial import BAD, Trial
from varlab.cli.main import main

KINDS = {form.name.removeprefix("directory: "): form for form in FORMATS}


@pytest.mark.parametrize("kind", ["load", "sample", "init", "report"])
def test_nothing_that_a_record_names_is_run(kind: str, tmp_path: Path) -> None:
    """A new directory for each case, which an audit hook compares with the honest one."""
    trial = Trial(KINDS[kind], tmp_path)
    results = [trial.run(number) for number in range(54 if kind == "load" else 2)]
    assert not [result for result in results if result.kind in BAD]
    assert kind == "report" or "would run" in " ".join(result.detail for result in results)


def test_auto_compares_by_records_and_builds_the_chosen_alone(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of hostile neighbours none is built that is not chosen, and the chosen one is refused."""
    payload = payloads(tmp_path / "planted")["torch's own runner"]
    world = tmp_path / "world"
    (world / "runs").mkdir(parents=True)
    for name in ("data", "multi", "single", "judge", "perceptual"):
        (world / "runs" / name).symlink_to(lab / name)
    for name, key in (("evil", "surplus"), ("worse", "scales")):
        run = world / "runs" / name
        shutil.copytree(lab / "single", run, ignore=shutil.ignore_patterns("pictures", "scores", "last.ckpt"))
        (run / "run.json").write_text(json.dumps(plant(small.record(run), ("build", "tokenizer", key), payload)))
    monkeypatch.chdir(world)
    arguments = ["train", *small.RUNS["raster"], "data=shards", "data.path=runs/data/source=digits", "budget.images=32"]
    main([*arguments, "out=runs/generator"])  # it takes the newest of the smallest, which may be the evil one
    assert not (tmp_path / "planted").exists()


def test_recorded_data_are_checked_and_trust_is_the_way_out(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    planted, run = tmp_path / "planted", tmp_path / "run"
    shutil.copytree(lab / "next_scale", run, ignore=shutil.ignore_patterns("pictures", "scores", "last.ckpt"))
    payload = payloads(planted)["torch's own runner"]
    (run / "run.json").write_text(json.dumps(plant(small.record(run), ("config", "data", "augment"), payload)))
    assert main(["evaluate", str(run), "n=16", f"out={tmp_path / 'scores'}"]) == 1
    assert "would run torch.utils.collect_env.run" in capsys.readouterr().err and not planted.exists()
    main(["evaluate", str(run), "n=16", "trust=true", f"out={tmp_path / 'trusted'}"])
    assert planted.exists()  # as the user asked
