"""Law 8 where a run resumes with other settings: those without influence on the weights leave every bit as it was."""

from __future__ import annotations

import functools
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests import small
from tests.conftest import ROOT
from varlab.cli.main import main

IMAGES = 320
TRAINING = (*small.GENERATOR, f"budget.images={IMAGES}", "data.workers=0", "log.every=96", "val.every=160")
OTHER = (
    "data.workers=1",
    "data.eval_batch=180",
    "log.every=32",
    "log.line_seconds=1",
    "val.every=96",
    "pictures.every=128",
)
OTHER += ("checkpoint.every=64", "checkpoint.minutes=0.0001", "scores.count=16", "tensorboard=true")
TWO = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")


def command(out: Path, *more: str) -> list[str]:
    """Later settings replace earlier ones."""
    words = {word.partition("=")[0]: word for word in (*TRAINING, *more)}
    return ["train", f"out={out}", *words.values()]


@pytest.fixture(scope="module")
def whole(world_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """A run that was never stopped, with further settings."""

    @functools.cache
    def run(*more: str) -> Path:
        out = tmp_path_factory.mktemp("whole") / "run"
        with small.inside(world_folder):
            assert main(command(out, *more)) == 0
        return out

    return run


@pytest.fixture
def interrupts() -> Iterator[None]:
    """Hear Ctrl-C: a shell lets what it starts in the background ignore it, and tests may run there."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def stop_at(images: int, run: Path, *more: str, number: signal.Signals = signal.SIGINT) -> int:
    """Train in this process until a signal that comes after so many images; returns the exit code."""

    ended = threading.Event()

    def ask() -> None:
        while small.progress(run) < images:
            if ended.wait(0.0005):
                return
        os.kill(os.getpid(), number)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    code = main(command(run, *more))
    ended.set()
    thread.join()
    return code


def assert_lines_in_order(run: Path) -> None:
    for name in ("train/loss", "val/nll"):
        images = [line["images"] for line in small.lines(run) if name in line]
        assert images == sorted(set(images)) and images[-1] == IMAGES


def test_settings_without_influence_may_change(
    interrupts: None, whole: Callable[..., Path], lab: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, moved = tmp_path / "run", tmp_path / "moved"
    assert stop_at(96, run) == 130
    for name in ("data/source=digits", "multi"):
        shutil.copytree(lab / name, moved / name)
    other = (*OTHER, f"data.path={moved / 'data/source=digits'}", f"tokenizer_run={moved / 'multi'}")
    assert main(command(run, *other)) == 0
    assert small.weights(run) == small.weights(whole())
    assert_lines_in_order(run)
    record = small.record(run)
    (resumed,) = record["resumes"]
    assert resumed["repeated"] == 0 and resumed["changed"]["data.workers"] == [0, 1] and "equal" not in resumed
    assert resumed["changed"]["tokenizer_run"] == ["auto", str(moved / "multi")]
    assert record["config"]["log"]["every"] == 32 and record["config"]["data"]["path"].startswith(str(moved))
    assert record["config"]["out"] == str(run) and "data.workers=0" in record["overrides"]
    (line,) = [entry.getMessage() for entry in caplog.records if "resumes with changes" in entry.getMessage()]
    assert "data.workers: 0 → 1" in line and "rounding" not in line
    assert main(command(run)) == 0, "the earlier settings are those of the same run, too"


@pytest.mark.parametrize("way", [(), pytest.param(TWO, marks=pytest.mark.slow)], ids=["one", "two"])
def test_intervals_of_checkpoints_and_minutes_change_no_bit(
    way: tuple[str, ...], whole: Callable[..., Path], lab: Path, tmp_path: Path
) -> None:
    """Rank 0's clock decides for all ranks."""
    assert main(command(tmp_path / "run", *way, "checkpoint.minutes=0.00001", "checkpoint.every=100000")) == 0
    assert small.weights(tmp_path / "run") == small.weights(whole(*way))
    assert small.lines(tmp_path / "run") == small.lines(whole(*way))


@pytest.mark.slow
def test_scores_and_best_weights_are_the_same_after_a_stop(
    interrupts: None, whole: Callable[..., Path], lab: Path, tmp_path: Path
) -> None:
    """And scoring draws nothing that the training would have drawn."""
    run = tmp_path / "run"
    scores = ("scores.every=96", "scores.count=20", "metrics.splits=2", "metrics.draws=2", "checkpoint.best=fid")
    assert stop_at(128, run, *scores) == 130
    assert main(command(run, *scores)) == 0
    assert small.weights(run) == small.weights(whole(*scores)) == small.weights(whole())
    assert small.lines(run) == small.lines(whole(*scores)) and len(small.curve(run, "val/fid")) == 4
    best = "weights_best.safetensors"
    assert (run / best).read_bytes() == (whole(*scores) / best).read_bytes()


def test_ctrl_c_saves_says_so_and_repeats_nothing(
    interrupts: None, whole: Callable[..., Path], lab: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert stop_at(IMAGES * 9 // 10, run, "checkpoint.every=100000") == 130
    done, outcome = small.progress(run), small.record(run)["outcome"]
    said = capfd.readouterr().err
    assert "Press it again to end immediately" in said
    assert f"Stopped by SIGINT after {done} images, all saved: run the same command again to resume." in said
    assert (outcome["state"], outcome["images"]) == ("stopped", done)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert main(command(run, "checkpoint.every=100000")) == 0
    assert small.record(run)["resumes"] == [{"from": done, "repeated": 0}]
    assert small.weights(run) == small.weights(whole()) and small.lines(run) == small.lines(whole())


def assert_close(run: Path, whole: Path, bound: float) -> None:
    mine, other = (load_file(one / "weights_raw.safetensors") for one in (run, whole))
    assert all(torch.allclose(mine[name], other[name], atol=bound, rtol=bound) for name in other)
    (resumed,) = small.record(run)["resumes"]
    assert resumed["equal"] == "up to rounding"


@pytest.mark.slow
def test_micro_batches_may_change_and_the_record_says_equal_up_to_rounding(
    interrupts: None, whole: Callable[..., Path], lab: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = tmp_path / "run"
    assert stop_at(160, run) == 130
    assert main(command(run, "trainer.micro_batch=8")) == 0
    assert_close(run, whole(), 1e-3)
    assert "trainer.micro_batch: null → 8; equal up to rounding" in caplog.text


@pytest.mark.slow
def test_other_images_and_other_parents_are_refused_and_nothing_changes(
    interrupts: None, lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert stop_at(32, run) == 130
    before = (run / "run.json").read_bytes()
    assert main(["pack", "source=digits", "source.size=8", f"out={tmp_path / 'other'}", "workers=0"]) == 0
    for wrong in (f"data.path={tmp_path / 'other'}", f"tokenizer_run={lab / 'single'}", "transformer.width=16"):
        assert main(command(run, wrong)) == 1
        assert "holds a run of another configuration" in capsys.readouterr().err
        assert (run / "run.json").read_bytes() == before


@pytest.mark.slow
def test_a_command_names_the_run_that_it_could_continue(
    interrupts: None, lab: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = f"near{os.getpid()}"
    near = lab / name / "earlier"
    words = ["train", f"name={name}", *command(near)[2:]]
    try:
        assert stop_at(64, near) == 130
        done = small.progress(near)
        assert main([*words, "data.cache_bytes=1000000", "seed=3", "budget.images=32"]) == 0
        assert "holds the same run" not in caplog.text, "another seed is another run"
        assert main([*words[:-1], "val.every=64", "budget.images=320"]) == 0
        hint = f"runs/{name}/earlier holds the same run (val.every: 160 → 64), ended after {done} images: add out=runs/{name}/"
        assert hint + "earlier to continue it" in caplog.text
    finally:
        shutil.rmtree(lab / name)


# -- in processes of their own -----------------------------------------------------------------------------------------


def hear_interrupts() -> None:
    """Before the command starts: see ``interrupts``. It gets a process group of its own, as at a terminal."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    os.setpgid(0, 0)


def start(run: Path, log: Path, *more: str) -> subprocess.Popen[bytes]:
    words = [sys.executable, "-m", "varlab.cli.main", *command(run, *more)]
    with log.open("wb") as errors:
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        return subprocess.Popen(words, stderr=errors, env=environment, preexec_fn=hear_interrupts)


def until(images: int, run: Path, process: subprocess.Popen[bytes], log: Path) -> None:
    while small.progress(run) < images:
        assert process.poll() is None, log.read_text()
        time.sleep(0.001)


@pytest.mark.slow
@pytest.mark.parametrize("way", [(), TWO], ids=["one", "two"])
def test_ctrl_c_at_a_terminal_reaches_all_processes(
    way: tuple[str, ...], whole: Callable[..., Path], lab: Path, tmp_path: Path
) -> None:
    """Loader processes do not end before the update that they feed; ranks save together, and one process says so."""
    run, log, settings = (
        tmp_path / "run",
        tmp_path / "log",
        (*way, "data.workers=2", "checkpoint.every=100000"),
    )
    process = start(run, log, *settings)
    until(IMAGES * 9 // 10, run, process, log)
    os.killpg(process.pid, signal.SIGINT)
    assert process.wait(60) == 130, log.read_text()
    assert f"after {small.progress(run)} images, all saved" in log.read_text().splitlines()[-1]
    assert "Traceback" not in log.read_text()
    assert main(command(run, *settings)) == 0
    (resumed,) = small.record(run)["resumes"]
    assert resumed["repeated"] == 0 and small.weights(run) == small.weights(whole(*way))


@pytest.mark.slow
@pytest.mark.parametrize("way", [(), TWO], ids=["one", "two"])
def test_a_second_ctrl_c_ends_at_once(way: tuple[str, ...], lab: Path, tmp_path: Path) -> None:
    """Here in an update that would take a minute."""
    run, log = tmp_path / "run", tmp_path / "log"
    slow = (
        "data.workers=2",
        "data.batch=1400",
        "trainer.micro_batch=2",
        "budget.images=1000000",
        "transformer.width=128",
    )
    process = start(run, log, *way, *slow)
    while not (run / "progress").exists():
        assert process.poll() is None, log.read_text()
        time.sleep(0.01)
    time.sleep(1.0)
    os.killpg(process.pid, signal.SIGINT)
    time.sleep(1.0)
    assert process.poll() is None, "the first one waits for the update"
    os.killpg(process.pid, signal.SIGINT)
    began = time.monotonic()
    assert process.wait(60) == 130, log.read_text()
    assert time.monotonic() - began < 15
    assert log.read_text().splitlines()[-1] == "varlab train: Interrupted: run the same command again to resume."


@pytest.mark.slow
def test_one_device_may_become_two(interrupts: None, whole: Callable[..., Path], lab: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert stop_at(160, run) == 130
    assert main(command(run, *TWO)) == 0
    assert_close(run, whole(), 1e-3)
    assert_lines_in_order(run)
    assert small.record(run)["resumes"][0]["changed"]["trainer.devices"] == [1, 2]


@pytest.mark.slow
def test_tensorboard_shows_each_step_once_after_kills(lab: Path, tmp_path: Path) -> None:
    """Several event files, with pictures: what a resumed run repeats takes the place of what the killed one wrote."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run, log = tmp_path / "run", tmp_path / "log"
    settings = ("tensorboard=true", "log.every=32", "val.every=64", "pictures.every=64", "checkpoint.every=96")
    for moment in (160, 256):
        child = small.Child(*command(run, *settings), log=log)
        assert child.until(lambda moment=moment: small.progress(run) >= moment), log.read_text()
        child.kill()
    assert main(command(run, *settings)) == 0
    assert sum(resumed["repeated"] for resumed in small.record(run)["resumes"]) > 0, "nothing was repeated"
    events = EventAccumulator(str(run / "tb"), size_guidance={"images": 0, "scalars": 0}).Reload()
    assert len(list((run / "tb").glob("events.*"))) >= 3
    assert [event.step for event in events.Scalars("train/loss")] == list(range(32, IMAGES + 1, 32))
    assert [event.step for event in events.Scalars("val/nll")] == list(range(64, IMAGES + 1, 64))
    assert [event.step for event in events.Images("samples")] == list(range(64, IMAGES + 1, 64))
    lines = {line["images"]: line["train/loss"] for line in small.lines(run) if "train/loss" in line}
    for event in events.Scalars("train/loss"):
        assert event.value == pytest.approx(lines[event.step], rel=1e-6)
