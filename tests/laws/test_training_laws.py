"""Laws 7, 8 and 10: the same seed, the same loss; stopping and resuming changes nothing; nor does a refactor."""

from __future__ import annotations

import functools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import golden_losses, small
from tests.small import Child
from varlab.cli.main import main
from varlab.rng import Rng
from varlab.tasks import Task
from varlab.types import VarlabError

ROOT = Path(__file__).resolve().parents[2]
IMAGES, EVERY, LOG = 416, 96, 128  # of a training; between its checkpoints, which fall between its log points
OFTEN = (f"budget.images={IMAGES}", f"checkpoint.every={EVERY}", f"log.every={LOG}", "val.every=160")
KINDS = {
    "tokenizer": (*small.RUNS["multi"], *OFTEN, "task.revival.every=128"),
    "generator": (*small.RUNS["next_scale"], "order=random", *OFTEN, "tensorboard=false"),
}


def command(kind: str, out: Path, *more: str) -> list[str]:
    return ["train", f"out={out}", *KINDS[kind], *more]


@pytest.fixture(scope="session")
def whole_runs(world_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """kind → the directory of a run that went from beginning to end."""

    @functools.cache
    def whole(kind: str) -> Path:
        out = tmp_path_factory.mktemp("whole") / kind
        with small.inside(world_folder):
            assert main(command(kind, out)) == 0
        return out

    return whole


@pytest.fixture(params=[pytest.param(kind, marks=pytest.mark.slow if kind == "tokenizer" else ()) for kind in KINDS])
def never_stopped(request: pytest.FixtureRequest, whole_runs: Callable[[str], Path]) -> tuple[str, Path]:
    """(kind, the directory of a run that went from beginning to end)."""
    return request.param, whole_runs(request.param)


def assert_same(run: Path, whole: Path) -> None:
    assert small.weights(run) == small.weights(whole)
    assert small.lines(run) == small.lines(whole)
    assert small.record(run)["outcome"]["images"] == IMAGES
    assert not [path.name for path in run.rglob(".*.tmp")], "a killed process left its half-written files"


# -- law 7 -------------------------------------------------------------------------------------------------------------


def test_same_seed_same_bits_and_another_seed_others(never_stopped, lab: Path, tmp_path: Path) -> None:
    kind, whole = never_stopped
    torch.manual_seed(99)  # no say in it
    before = torch.random.get_rng_state()
    assert main(command(kind, tmp_path / "same")) == 0
    assert torch.equal(torch.random.get_rng_state(), before)
    assert_same(tmp_path / "same", whole)
    assert main(command(kind, tmp_path / "other", "seed=1")) == 0
    first, other = (small.curve(run, "train/loss") for run in (whole, tmp_path / "other"))
    assert len(first) == len(other) == -(-IMAGES // LOG)
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_the_adversarial_part_is_at_work(never_stopped) -> None:
    """Else law 8 would not hear of it."""
    kind, whole = never_stopped
    if kind == "tokenizer":
        assert min(small.curve(whole, "train/lambda")) > 0 and len(small.curve(whole, "train/disc_loss")) >= 4
        assert sum(small.curve(whole, "train/revived")) > 0


# -- law 8 -------------------------------------------------------------------------------------------------------------

MOMENTS = [  # twenty others: test_kill_laws.py
    pytest.param("generator", 0, marks=pytest.mark.slow),
    pytest.param("tokenizer", 32, marks=pytest.mark.slow),
    pytest.param("tokenizer", 224, marks=pytest.mark.slow),
    ("generator", IMAGES),
]


@pytest.mark.parametrize(("kind", "moment"), MOMENTS)
def test_killed_at_any_moment_equals_never_stopped(
    kind: str, moment: int, whole_runs: Callable[[str], Path], lab: Path, tmp_path: Path
) -> None:
    whole = whole_runs(kind)
    run, log = tmp_path / "run", tmp_path / "log"
    child = Child(*command(kind, run), log=log)
    jitter = float(Rng(moment).stream("moment", len(kind)).uniform()) * 0.03
    came = child.until(lambda: (run / "progress").exists() and small.progress(run) >= moment)
    assert came, log.read_text()
    child.until(_after(jitter))
    child.kill()
    done = small.progress(run)
    assert done >= moment
    killed = small.record(run)
    again = Child(*command(kind, run), log=log)
    assert again.wait() == 0, log.read_text()
    assert_same(run, whole)
    if killed["outcome"]["state"] == "running":
        (resumed,) = small.record(run)["resumes"]
        assert resumed["from"] + resumed["repeated"] == done and resumed["repeated"] <= EVERY


def _after(seconds: float) -> Callable[[], bool]:
    end = time.monotonic() + seconds
    return lambda: time.monotonic() >= end


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["generator", "tokenizer"])
def test_killed_again_and_again(kind: str, whole_runs: Callable[[str], Path], lab: Path, tmp_path: Path) -> None:
    whole = whole_runs(kind)
    run, log = tmp_path / "run", tmp_path / "log"
    for moment in (64, 160, 352):
        child = Child(*command(kind, run), log=log)
        child.until(lambda moment=moment: small.progress(run) >= moment)
        child.kill()
    assert Child(*command(kind, run), log=log).wait() == 0, log.read_text()
    assert_same(run, whole)
    resumes = small.record(run)["resumes"]
    assert len(resumes) == 3 and all(r["repeated"] <= EVERY for r in resumes)
    assert all(r["from"] == last_checkpoint(r["from"]) for r in resumes)


def last_checkpoint(images: int) -> int:
    """The last moment not after ``images`` at which a checkpoint is written."""
    return images // EVERY * EVERY


def hear_interrupts() -> None:
    """A shell starts what it puts into the background deaf to Ctrl-C; tests may themselves run there."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "number"),
    [("tokenizer", signal.SIGKILL), ("generator", signal.SIGINT)],
)
def test_the_console_command_stopped_by_a_signal(
    kind: str, number: signal.Signals, whole_runs: Callable[[str], Path], lab: Path, tmp_path: Path
) -> None:
    """Seen from a shell: kill -9, and Ctrl-C, which says how to go on."""
    run, log = tmp_path / "run", tmp_path / "log"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    shell = [sys.executable, "-m", "varlab.cli.main", *command(kind, run)]
    with log.open("w") as errors:
        process = subprocess.Popen(shell, stderr=errors, env=environment, preexec_fn=hear_interrupts)
        while small.progress(run) < 192:
            assert process.poll() is None, log.read_text()
            time.sleep(0.005)
        process.send_signal(number)
        code = process.wait(300)
    state = small.record(run)["outcome"]
    if number == signal.SIGINT:
        assert code == 130 and log.read_text().splitlines()[-1].startswith("varlab train: Stopped by SIGINT after")
        assert (state["state"], state["images"]) == ("stopped", small.progress(run))
    else:
        assert code == -number and state["state"] == "running"
    assert main(command(kind, run)) == 0
    assert_same(run, whole_runs(kind))


def test_a_failed_run_goes_on(
    never_stopped, lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, whole = never_stopped
    plain = Task.training_step

    def fails(task: Task, batch, batch_idx: int) -> object:
        if task.images >= 256:
            raise VarlabError("The lights went out: switch them on.")
        return plain(task, batch, batch_idx)

    monkeypatch.setattr(Task, "training_step", fails)
    run = tmp_path / "run"
    assert main(command(kind, run)) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "varlab train: The lights went out: switch them on."
    outcome = small.record(run)["outcome"]
    assert (outcome["state"], outcome["images"]) == ("failed", 256) and "lights" in outcome["error"]
    monkeypatch.undo()
    with small.inside(lab.parent):
        assert main(command(kind, run)) == 0
    assert_same(run, whole)
    assert small.record(run)["outcome"]["error"] is None


# -- law 10 ------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def golden_trainings(world_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> golden_losses.Losses:
    """The golden trainings in float32, once."""
    with small.inside(world_folder):
        return golden_losses.train(golden_losses.read(), tmp_path_factory.mktemp("golden"))


@pytest.mark.numeric
def test_golden_losses(golden_trainings: golden_losses.Losses, lab: Path, tmp_path: Path) -> None:
    """A refactor changes no loss. To change them on purpose, see ``tests/golden_losses.py``.

    On a stored kind of processor they are equal to the last bit. On another, float32 stays near what float64 gives, and
    float64 gives what it gives everywhere, so nearly that no change hides behind roundings.
    """
    stored, kind = golden_losses.processors(), golden_losses.kind()
    if kind in stored["float32"]:
        assert not golden_losses.differences(golden_trainings, stored["float32"][kind]), kind
        return
    assert not golden_losses.from_float64(golden_trainings, stored, stored["spread"]), kind
    exact = golden_losses.train_in_float64(golden_losses.read(), tmp_path)
    assert not golden_losses.from_float64(exact, stored, golden_losses.in_float64(stored["spread"])), kind


@pytest.mark.numeric
def test_golden_losses_of_other_processors() -> None:
    """What is stored of them is near float64, too; so is what was stored beside the configurations, by another kind."""
    stored = golden_losses.processors()
    first = {name: entry["losses"] for name, entry in golden_losses.read().items()}
    for losses in (first, *stored["float32"].values()):
        assert not golden_losses.from_float64(losses, stored, stored["spread"])


CHANGES = {
    "learning rate × 1.001": lambda config: config["perceptual"]["config"]["task"]["optimizer"].update(lr=0.003003),
    # four updates are so few that the average's decay is at most 0.3
    "another average": lambda config: config["perceptual"]["config"]["task"].update(ema_decay=0.2),
    "no VQ loss": lambda config: config["multi"]["config"]["task"]["weights"].update(vq=0.0),
}


@pytest.mark.slow
@pytest.mark.numeric
@pytest.mark.parametrize("change", CHANGES)
def test_golden_losses_see_a_change(change: str, golden_trainings, lab: Path, tmp_path: Path) -> None:
    """On a stored kind of processor, and by float64 alone on another."""
    stored = golden_losses.processors()
    first_two = {
        name: golden_losses.read()[name] for name in ("perceptual", "multi")
    }  # the second takes the first's average
    CHANGES[change](first_two)
    single = golden_losses.train(first_two, tmp_path / "float32")
    assert golden_losses.differences(single, golden_trainings)
    CHANGES[change](first_two := {name: golden_losses.read()[name] for name in first_two})
    exact = golden_losses.train_in_float64(first_two, tmp_path / "float64")
    assert golden_losses.from_float64(exact, stored, golden_losses.in_float64(stored["spread"]))
