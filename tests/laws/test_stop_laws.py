"""Law 8 where a run is asked to stop: it saves where it stands, and goes on from there with the same bits."""

from __future__ import annotations

import functools
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests import small
from tests.small import Child
from varlab.cli.main import main
from varlab.rng import Rng

IMAGES = 448
TRAINING = (
    *small.GENERATOR,
    "order=random",
    f"budget.images={IMAGES}",
    "checkpoint.every=100000",  # none but what a stop saves
    "log.every=96",
    "val.every=64",  # most of the time goes into validation and pictures
    "pictures.every=96",
)
pytestmark = pytest.mark.slow

WAYS = {
    "one": (),
    "two": ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2"),
    "spread": ("trainer=fsdp", "trainer.accelerator=cpu", "trainer.devices=2"),
}
ASKED = {signal.SIGTERM: 143, signal.SIGUSR2: 140}


def command(out: Path, way: str) -> list[str]:
    return ["train", f"out={out}", *TRAINING, *WAYS[way]]


@pytest.fixture(scope="module")
def whole(world_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """way → a run that was never stopped."""

    @functools.cache
    def run(way: str) -> Path:
        out = tmp_path_factory.mktemp("whole") / way
        with small.inside(world_folder):
            assert main(command(out, way)) == 0
        return out

    return run


@pytest.mark.parametrize(
    ("way", "number"),
    [(way, number) for way in WAYS for number in ASKED if way != "spread" or number is signal.SIGTERM],
    ids=lambda value: getattr(value, "name", value),
)
def test_asked_again_and_again(
    way: str, number: signal.Signals, whole: Callable[[str], Path], lab: Path, tmp_path: Path
) -> None:
    """At random moments: in updates, validation, pictures, saving. Not one image is trained twice."""
    run, log = tmp_path / "run", tmp_path / "log"
    moments = [160, 352] if way != "one" else [64, 256] if number is signal.SIGTERM else [160, 384]
    for moment in moments:
        child = Child(*command(run, way), log=log)
        assert child.until(lambda moment=moment: small.progress(run) >= moment), log.read_text()
        time.sleep(0.1 * float(Rng(moment).stream("moment", int(number)).uniform()))
        child.signal(number)
        assert child.wait() == ASKED[number], log.read_text()
        outcome = small.record(run)["outcome"]
        assert outcome["state"] == "stopped" and outcome["error"].startswith(f"Stopped by {number.name} after"), outcome
        assert log.read_text().splitlines()[-1].endswith("run the same command again to resume.")
    assert Child(*command(run, way), log=log).wait() == 0, log.read_text()
    assert small.weights(run) == small.weights(whole(way))
    assert small.lines(run) == small.lines(whole(way))
    resumes = small.record(run)["resumes"]
    assert len(resumes) == len(moments)
    assert [resumed["repeated"] for resumed in resumes] == [0] * len(moments)


@pytest.mark.parametrize("way", WAYS)
def test_asked_at_the_very_end(way: str, whole: Callable[[str], Path], lab: Path, tmp_path: Path) -> None:
    """After the last update: nothing is left to train, but validation and pictures are."""
    run, log = tmp_path / "run", tmp_path / "log"
    child = Child(*command(run, way), log=log)
    assert child.until(lambda: small.progress(run) >= IMAGES), log.read_text()
    child.signal(signal.SIGTERM)
    assert child.wait() == 143, log.read_text()
    assert not (run / "weights.safetensors").exists() and small.record(run)["outcome"]["state"] == "stopped"
    assert Child(*command(run, way), log=log).wait() == 0, log.read_text()
    assert small.lines(run) == small.lines(whole(way)) and small.weights(run) == small.weights(whole(way))
    assert [resumed["repeated"] for resumed in small.record(run)["resumes"]] == [0]


def test_asked_in_the_middle_of_validation(whole: Callable[[str], Path], lab: Path, tmp_path: Path) -> None:
    """It is left at once, and made again: the state saved is the one before it, its log point not yet written."""
    run, log = tmp_path / "run", tmp_path / "log"
    wordy = ("val.every=64", "log.every=96")
    child = Child(*command(run, "one"), *wordy, log=log)

    def logged() -> bool:
        return (run / "metrics.jsonl").exists() and any(line["images"] == 192 for line in small.lines(run))

    assert child.until(lambda: small.progress(run) >= 192 and _safely(logged)), log.read_text()
    child.signal(signal.SIGTERM)  # the line of 192 images is there, its validation is under way
    assert child.wait() == 143, log.read_text()
    assert Child(*command(run, "one"), *wordy, log=log).wait() == 0, log.read_text()
    assert small.lines(run) == small.lines(whole("one")) and small.weights(run) == small.weights(whole("one"))


def _safely(look: Callable[[], bool]) -> bool:
    try:
        return look()
    except ValueError:  # half a line
        return False
