"""The console script, from the outside: what it says, where runs land, how it ends."""

from __future__ import annotations

import logging
import os
import re
import statistics
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from varlab.cli.app import conf_dir
from varlab.cli.command_table import COMMANDS
from varlab.cli.main import main, usage
from varlab.run.record import read_record


def outside(*arguments: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", "import sys; from varlab.cli.main import main; sys.exit(main())", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env)


def test_help_answers_at_once() -> None:
    seconds = []
    for _ in range(5):
        start = os.times()
        done = outside("--help")
        end = os.times()  # of the processor, so that other work beside it does not count
        seconds.append(end.children_user + end.children_system - start.children_user - start.children_system)
    assert done.returncode == 0
    assert all(name in done.stdout for name in COMMANDS)
    assert statistics.median(seconds) < 0.5


def test_help_imports_nothing_heavy() -> None:
    code = "import sys; from varlab.cli.main import main; main(['--help']); print(sorted(sys.modules), file=sys.stderr)"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env)
    assert not [heavy for heavy in ("torch", "hydra", "omegaconf", "rich", "numpy") if f"'{heavy}'" in done.stderr]


def test_every_command_has_its_configuration() -> None:
    for command in COMMANDS.values():
        assert isinstance(yaml.safe_load((conf_dir() / f"{command.name}.yaml").read_text()), dict)
        assert command.purpose in usage(COMMANDS)


def words(text: str) -> str:
    """A text on one line, for comparison."""
    return " ".join(text.split())


def test_command_help_lists_choices_and_keys(varlab) -> None:
    code, out, _ = varlab("fake", "--help")
    assert code == 0
    assert words("flavour=plain others: salty") in words(out) and "taste=none" in out and "action=work" in out
    assert "torch" not in outside("pack", "--help").stderr


def test_version(capsys) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("varlab ")


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (["fkae"], 2, "did you mean 'fake'"),
        (["fake", "sede=1"], 1, "there is no key 'sede': did you mean 'seed'?"),
        (["fake", "trainer.device=1"], 1, "did you mean 'trainer.devices'?"),
        (["fake", "flavour=salt"], 1, "flavour has no 'salt': did you mean 'salty'? Choose from plain, salty"),
        (["fake", "flavor=salty"], 1, "there is no key 'flavor': did you mean 'flavour'?"),
        (["fake", "experiment=nothing"], 1, "experiment has no 'nothing'"),
        (["fake", "seed=1,2"], 1, "seed=1,2 asks for several runs: add -m"),
        (["fake", "needed=???"], 1, "needed has no value: give one with needed=…"),
        (["fake", "seed=[1"], 1, "cannot be read as key=value"),
        (["fake", "seed=${nowhere}"], 1, "nowhere"),
        (["fake", "action=refuse"], 1, "this cannot be done: do something else"),
        (["fake", "runs/a", "runs/b"], 1, "varlab fake -m runs/a runs/b"),
        (["fake", "trainer.devices=two"], 1, "trainer.devices=two is neither"),
        (["fake", "trainer.num_nodes=2"], 1, "trainer.num_nodes=2 needs a process started on every node"),
    ],
)
def test_mistakes_get_one_sentence(varlab, arguments: list[str], code: int, says: str) -> None:
    got, out, err = varlab(*arguments)
    assert got == code
    assert out == ""
    lines = [line for line in err.splitlines() if line.startswith("varlab")]
    assert len(lines) == 1 and says in lines[0], err
    assert "Traceback" not in err


def test_a_missing_launcher_says_how_to_get_it() -> None:
    from hydra.errors import MissingConfigException

    from varlab.launch.user_message import user_message

    error = MissingConfigException("In 'launch/slurm': Could not find …", "hydra/launcher/varlab_slurm", ["basic"])
    assert "pip install 'varlab[slurm]'" in user_message(error)


def test_a_bug_keeps_its_traceback(varlab, caplog: pytest.LogCaptureFixture) -> None:
    code, _, err = varlab("fake", "action=break_down")
    assert code == 1 and "unexpected ZeroDivisionError: a bug" in err
    assert [record for record in caplog.records if record.exc_info]


def test_again_does_nothing_and_says_so(varlab, workplace: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert varlab("fake", "seed=1")[0] == 0
    before = read_record(workplace / "runs/fakes/seed=1").to_json()
    assert before["outcome"] == {"state": "finished", "error": None, "images": 10, "seed": 1, "run": None}
    assert before["overrides"] == ["seed=1"] and before["choices"]["flavour"] == "plain"
    caplog.set_level(logging.INFO)
    assert varlab("fake", "seed=1")[0] == 0
    assert "is finished: nothing to do" in caplog.text
    assert read_record(workplace / "runs/fakes/seed=1").to_json() == before


def test_a_failed_run_goes_on(varlab, workplace: Path) -> None:
    assert varlab("fake", "out=here", "action=progress_then_refuse")[0] == 1
    assert read_record(workplace / "here").outcome.state == "failed"
    code, _, err = varlab("fake", "out=here", "action=work")
    assert code == 1 and "another configuration: action" in err
    assert varlab("fake", "out=here", "action=progress_then_refuse")[0] == 1
    assert read_record(workplace / "here").auto["runs"] == 2


def test_ctrl_c_is_recorded(varlab, workplace: Path) -> None:
    code, _, err = varlab("fake", "out=here", "action=interrupted")
    assert code == 130 and "Interrupted" in err
    assert read_record(workplace / "here").outcome.state == "stopped"


def test_hydra_leaves_no_files(varlab, workplace: Path) -> None:
    varlab("fake", "out=here")
    assert {path.name for path in workplace.rglob("*") if path.is_file()} == {"run.json", ".lock"}


def test_a_run_is_named_by_its_path(varlab, workplace: Path) -> None:
    varlab("fake", "seed=1")
    assert varlab("fake", "runs/fakes/seed=1")[0] == 0
    assert read_record(workplace / "runs/fakes/run=runs_fakes_seed=1").outcome.values["run"] == "runs/fakes/seed=1"


@pytest.mark.parametrize("launch", ["local", pytest.param("joblib", marks=pytest.mark.slow)])
def test_under_multirun_a_failed_job_loses_no_other(varlab, workplace: Path, launch: str) -> None:
    if launch == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    code, _, err = varlab("fake", "-m", "action=refuse,work", "seed=0,1", "out=many", f"launch={launch}")
    assert code == 1
    states = {path.name: read_record(path).outcome.state for path in (workplace / "many").glob("action=*")}
    assert states == {
        "action=refuse+seed=0": "failed",
        "action=refuse+seed=1": "failed",
        "action=work+seed=0": "finished",
        "action=work+seed=1": "finished",
    }
    assert "2 of 4 runs failed:" in err and err.count("this cannot be done") == 1
    assert re.search(r"^  action=refuse seed=0\b.*, action=refuse seed=1\b.*: this cannot be done", err, re.MULTILINE)
    assert varlab("fake", "-m", "action=work", "seed=0,1", "out=many", f"launch={launch}")[0] == 0


def test_a_reason_of_all_jobs_is_said_once(varlab, workplace: Path) -> None:
    code, _, err = varlab("fake", "-m", "action=refuse", "seed=0,1", "out=many")
    assert code == 1 and "2 of 2 runs failed, all for one reason: this cannot be done" in err
    assert err.count("this cannot be done") == 1


def test_jobs_that_would_share_a_directory_are_refused(varlab, workplace: Path) -> None:
    code, _, err = varlab("fake", "-m", "launch=local,joblib", "seed=1", "out=many")
    assert code == 1 and "launch=local, launch=joblib say how a run is done" in err and err.count("\n") == 1
    code, _, err = varlab("fake", "-m", "seed=1,1", "out=many")
    assert code == 1 and "name each value once" in err
    assert not (workplace / "many").exists()


def test_a_launcher_without_a_sweep_is_refused(varlab, workplace: Path) -> None:
    """Hydra would run the job here, on a cluster's login node, and say nothing."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    code, _, err = varlab("fake", "launch=joblib", "out=here")
    assert code == 1 and "launch=joblib is for sweeps" in err and not (workplace / "here").exists()
    assert varlab("fake", "launch=local", "out=here")[0] == 0


def test_multirun_takes_several_paths(varlab, workplace: Path) -> None:
    assert varlab("fake", "-m", "runs/a=1", "runs/b=2", "out=many")[0] == 0
    outcomes = [read_record(path).outcome.values["run"] for path in sorted((workplace / "many").glob("run=*"))]
    assert outcomes == ["runs/a=1", "runs/b=2"]


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--cfg", "job"]])
def test_an_output_that_is_full(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """As in ``varlab --help > /dev/full``."""
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert main(arguments) == 1
        said = capsys.readouterr().err
    assert "the disk is full: make room and run the same command again" in said and "Traceback" not in said


def test_an_output_that_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in ``varlab --help >&-``."""
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["--help"]) == 0
