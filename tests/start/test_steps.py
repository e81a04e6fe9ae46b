"""The steps of a start are commands that exist, for every kind of folder and machine."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from PIL import Image

from varlab.cli.main import main
from varlab.config import Config, conf_dir
from varlab.errors import VarlabError
from varlab.info import DataInfo
from varlab.start.agenda import Phase
from varlab.start.command_file import write_commands
from varlab.start.history import History
from varlab.start.machine import Machine
from varlab.start.pace import measured_pace
from varlab.start.processes import run_together
from varlab.start.steps import Step, Steps

CPU, GPU = Machine("cpu", 2), Machine("gpu", 8)


def config(**changes: object) -> Config:
    values = OmegaConf.to_container(OmegaConf.load(conf_dir() / "start.yaml"))
    assert isinstance(values, dict)
    return values | {"folder": "my photos"} | changes


def steps(machine: Machine = CPU, *, classes: int = 3, images: int = 900, **changes: object) -> Steps:
    names = tuple(map(str, range(classes)))
    info = DataInfo("data", names, (32, 32), {"train": images, "val": 100}, "hash", "folder")
    return Steps(config(**changes), Path("runs/my photos"), machine, info)


def all_steps(of: Steps) -> list[Step]:
    generator = of.generator("next_scale", 4096, at_once=2)
    return [
        Steps.pack(config(), Path("runs/x")),
        of.network("judge", 1024, at_once=2),
        of.network("perceptual", 1024, at_once=1),
        of.tokenizer("multi", 4096, at_once=2),
        generator,
        of.trial(generator, 512, log_every=128, kept=False),
        of.scores("tokenizer/multi", 0, at_once=2),
        of.scores("generator/next_scale", 500, at_once=1),
        of.samples("next_scale", 30, at_once=1),
        of.report(),
    ]


@pytest.mark.parametrize("made", [steps(), steps(GPU, classes=1, size=128, flip=True, seed=3)], ids=["cpu", "gpu"])
def test_every_step_is_a_command(made: Steps, capsys: pytest.CaptureFixture[str]) -> None:
    for step in all_steps(made):
        assert main([*step.words, "--cfg", "job"]) == 0, capsys.readouterr().err


def test_pictures_are_mirrored_only_on_request() -> None:
    def mirrored(of: Steps) -> bool:
        return any("flip=true" in word for step in all_steps(of) for word in step.words)

    assert not mirrored(steps())
    assert mirrored(steps(flip=True))


def test_without_classes_the_judge_predicts_rotations() -> None:
    assert "task=classifier" in steps().network("judge", 1, at_once=1).words
    alone = steps(classes=1)
    assert "task=rotation" in alone.network("judge", 1, at_once=1).words
    assert not any(word.startswith("sampler.cfg") for word in alone.generator("raster", 1, at_once=1).words)
    assert "labels=data" not in alone.scores("generator/raster", 64, at_once=1).words


def test_a_small_set_has_small_batches_and_few_codes() -> None:
    small, large = steps(images=100), steps(GPU, images=10**6)
    assert (small.batch("classifier"), large.batch("classifier")) == (16, 128)
    assert small.vocabulary < large.vocabulary


def test_cores_are_shared_by_the_commands_that_run_at_once() -> None:
    four = Machine("cpu", 4)
    assert [four.threads(n, 4) for n in (1, 2, 4, 8)] == [4, 2, 1, 1]
    assert Machine("cpu", 1).lanes == 1
    with pytest.raises(VarlabError, match="machine=tpu"):
        Machine.here("tpu")


def test_a_trial_is_the_beginning_of_its_training() -> None:
    step = steps().generator("raster", 4096, at_once=2)
    trial = steps().trial(step, 512, log_every=128)
    kept = [word for word in step.words if not word.startswith("budget.")]
    assert set(kept) < set(trial.words)
    warmup = next(int(word.partition("=")[2]) for word in step.words if "warmup" in word)
    assert f"budget.images={min(512, warmup)}" in trial.words  # within the warm-up its length can change


def test_commands_sh_runs_the_steps(tmp_path: Path) -> None:
    """The script calls the same commands, in order, with names that a shell would take apart."""
    made = all_steps(steps())
    stub, log, script = tmp_path / "bin" / "varlab", tmp_path / "log", tmp_path / "commands.sh"
    stub.parent.mkdir()
    # a line of a file is written at once, also by two commands
    stub.write_text(f'#!/bin/bash\nprintf \'%s\\n\' "$(printf \'%q \' "$@")" >>{log}\n[ "$1" != fail ]\n')
    stub.chmod(0o755)
    phases = [Phase("one", (made[0],)), Phase("two", tuple(made[1:3])), Phase("rest", tuple(made[3:4]))]
    write_commands(script, "varlab start", phases)
    environment = {"PATH": f"{stub.parent}:/usr/bin:/bin"}
    assert subprocess.run(["bash", script], env=environment).returncode == 0
    called = [tuple(shlex.split(line)) for line in log.read_text().splitlines()]
    assert called[0] == made[0].words and called[3] == made[3].words
    assert set(called[1:3]) == {step.words for step in made[1:3]}
    write_commands(script, "varlab start", [Phase("one", (Step(name="x", words=("fail",)), made[0])), phases[2]])
    assert subprocess.run(["bash", script], env=environment).returncode != 0


def test_a_failed_command_is_named_with_its_log(tmp_path: Path) -> None:
    good, bad = Step(name="good", words=("--version",)), Step(name="a/bad", words=("trian",))
    ended: list[str] = []
    run_together([good], tmp_path, ended=lambda step, seconds: ended.append(step.name))
    assert ended == ["good"]
    with pytest.raises(VarlabError, match=r"^varlab trian ended with exit code.*unknown command 'trian'.*a_bad\.log"):
        run_together([bad], tmp_path, ended=lambda step, seconds: None, quiet=True)


def test_a_killed_command_is_said_to_lack_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stub = tmp_path / "python"
    stub.write_text("#!/bin/sh\nkill -9 $$\n")
    stub.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(stub))
    step = Step(name="tokenizer/multi", words=("train", "task=tokenizer"))
    with pytest.raises(VarlabError, match=r"varlab train task=tokenizer was killed by SIGKILL.*memory.*smaller size="):
        run_together([step], tmp_path, ended=lambda step, seconds: None)


@pytest.mark.slow
def test_what_a_start_does_itself_is_said_in_its_logs_only(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    for i in range(24):
        (tmp_path / "pictures").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (9 * i, 0, 0)).save(tmp_path / "pictures" / f"{i}.png")
    words = ("pack", "source=folder", f"path={tmp_path / 'pictures'}", "source.size=8", "workers=0")
    for name, quiet in (("shown", False), ("logged", True)):
        step = Step(name=name, words=(*words, f"out={tmp_path / name}"))
        run_together([step], tmp_path / "logs", ended=lambda step, seconds: None, quiet=quiet)
    said = capfd.readouterr().err
    assert "look at" in said and "next: " not in said
    assert "--brief" not in (tmp_path / "shown" / "run.json").read_text()
    assert "next: varlab train" in (tmp_path / "logs" / "logged.log").read_text()


def test_another_start_in_the_same_folder_is_refused(tmp_path: Path) -> None:
    history = History.of(tmp_path, {"minutes": 30})
    history.decide("judge", 64)
    history.decide("judge", 128)
    history.write(tmp_path)
    assert History.of(tmp_path, {"minutes": 30}).numbers == {"judge": 64}
    with pytest.raises(VarlabError, match="minutes=30, not 60"):
        History.of(tmp_path, {"minutes": 60})


def test_the_pace_leaves_out_the_first_updates(tmp_path: Path) -> None:
    record = {
        "outcome": {"state": "finished", "error": None, "images": 512, "seconds": 30.0},
        "cost": {"train_flops_per_image": 10, "encode_flops_per_image": 5},
    }
    (tmp_path / "run.json").write_text(json.dumps(record))
    points = [{"images": 128, "seconds": 20.0}, {"images": 256, "seconds": 22.0}, {"images": 512, "seconds": 26.0}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
    pace = measured_pace(tmp_path, unmeasured=128, wall=40.0, encodes=True)
    assert (pace.images_per_second, pace.overhead, pace.flops_per_second) == (64.0, 10.0, 960.0)
