"""Loggers, callbacks, profilers and the Trainer's keys from the command line, a user's own from ``--config-dir`` among them."""

from __future__ import annotations

import csv
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests import small
from varlab.cli.main import main

SHORT = (*small.RUNS["judge"], "budget.images=192", "val.every=128", "data.workers=0")
SPY = """
import json
import struct
from pathlib import Path

from lightning.pytorch import Callback
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only


class Watch(Callback):
    def __init__(self, *, word, data, directory):
        self.word, self.file, self.count = word, directory / f"watched{data.batch}.jsonl", 0

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        self.count += 1
        task.log("mine/count", float(self.count))

    def on_validation_end(self, trainer, task):
        if trainer.is_global_zero:
            values = {name: float(value) for name, value in trainer.callback_metrics.items()}
            with self.file.open("a") as file:
                file.write(json.dumps({**values, "word": self.word, "images": task.images}) + "\\n")


class Lines(Logger):
    name, version = "lines", 0

    def __init__(self, *, file):
        super().__init__()
        self.file = Path(file)

    def log_hyperparams(self, *arguments, **keywords):
        pass

    @rank_zero_only
    def log_metrics(self, metrics, step=None):
        with self.file.open("a") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\\n")
"""


@pytest.fixture
def conf(tmp_path: Path) -> Iterator[Path]:
    """A user's folder: two YAML files, and the Python file of their classes beside them."""
    folder = tmp_path / "my_conf"
    for group in ("logger", "callbacks"):
        (folder / group).mkdir(parents=True)
    (folder / "users_spy.py").write_text(SPY)
    (folder / "callbacks" / "watch.yaml").write_text("watch:\n  _target_: users_spy.Watch\n  word: hello\n")
    (folder / "logger" / "lines.yaml").write_text("_target_: users_spy.Lines\nfile: ${out}/lines.jsonl\n")
    yield folder
    sys.modules.pop("users_spy", None)


def jsonl(file: Path) -> list[dict]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_several_loggers_a_profiler_and_a_users_own(conf: Path, lab: Path, tmp_path: Path) -> None:
    """One value everywhere, and a callback's own number with it; a resumed run may change who watches."""
    run, path = tmp_path / "run", list(sys.path)
    groups = ("logger=[tensorboard,csv,lines]", "callbacks=[default,watch]", "profiler=simple", "tensorboard=true")
    assert main(["train", f"out={run}", *SHORT, *groups, "--config-dir", str(conf)]) == 0
    assert sys.path == path
    losses = small.curve(run, "train/loss")
    assert len(losses) == 3
    with (run / "csv" / "version_0" / "metrics.csv").open() as file:
        assert [float(row["train/loss"]) for row in csv.DictReader(file) if row["train/loss"]] == losses
    lines = jsonl(run / "lines.jsonl")
    assert [(line["step"], line["train/loss"]) for line in lines if "train/loss" in line] == list(
        zip((64, 128, 192), losses, strict=True)
    )
    events = EventAccumulator(str(run / "tb")).Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [64, 128, 192]
    assert [(event.step, event.value) for event in events.Scalars("mine/count")] == [(64, 1), (128, 2), (192, 3)]
    assert small.curve(run, "mine/count") == [1, 2, 3]
    watched = jsonl(run / "watched64.jsonl")
    assert [(line["word"], line["images"]) for line in watched] == [("hello", 128), ("hello", 192)]
    assert [line["val/loss"] for line in watched] == small.curve(run, "val/loss")
    assert "optimizer_step" in (run / "fit-profile.txt").read_text()
    assert {"tensorboard", "csv"} <= small.record(run)["config"]["logger"].keys()


def test_who_watches_changes_neither_weights_nor_name_nor_identity(
    lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    data = f"data.path={lab / 'data' / 'source=digits'}"
    with small.inside(tmp_path):
        assert main(["train", *SHORT, data, "logger=csv"]) == 0
        (run,) = (tmp_path / "runs" / "train").iterdir()
        assert "logger" not in run.name and not (run / "tb").exists()
        more = ("logger=none", "profiler=advanced", "~callbacks.progress_bar")
        assert main(["train", *SHORT, data, *more]) == 0
        assert capsys.readouterr().err.rstrip().endswith("is finished: nothing to do")
        assert main(["train", f"out={tmp_path / 'bare'}", *SHORT, data, *more]) == 0
    assert small.weights(run) == small.weights(tmp_path / "bare")
    assert small.lines(run) == small.lines(tmp_path / "bare")


def test_lightnings_own_callbacks_act_on_the_clock(lab: Path, tmp_path: Path) -> None:
    """A checkpoint for each validation, and an end as soon as the score is good enough."""
    saver = (
        "+callbacks.best={_target_:lightning.pytorch.callbacks.ModelCheckpoint,monitor:val/loss,save_top_k:-1,"
        "filename:'{step}'}"
    )
    stop = (
        "+callbacks.stop={_target_:lightning.pytorch.callbacks.EarlyStopping,monitor:val/loss,patience:9,"
        "stopping_threshold:100}"
    )
    run = tmp_path / "run"
    assert main(["train", f"out={run}", *SHORT, saver, stop]) == 0
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step=2.ckpt"]
    assert small.record(run)["outcome"]["images"] == 128


@pytest.mark.slow
def test_keys_of_the_trainer_pass_through(lab: Path, tmp_path: Path) -> None:
    def run(name: str, *more: str) -> Path:
        assert main(["train", f"out={tmp_path / name}", *SHORT, *more]) == 0
        return tmp_path / name

    plain, clipped = run("plain"), run("clipped", "trainer.gradient_clip_val=0.01", "+trainer.limit_val_batches=1")
    assert small.weights(plain) != small.weights(clipped) == small.weights(run("task", "task.clip=0.01"))
    assert small.curve(plain, "val/accuracy") != small.curve(clipped, "val/accuracy")
    tried = run("tried", "+trainer.fast_dev_run=2")
    assert small.record(tried)["outcome"]["images"] == small.record(tried)["budget"]["images"] == 128


@pytest.mark.parametrize(
    ("argument", "sentence"),
    [
        ("trainer.max_epochs=3", "trainer.max_epochs is decided by the run itself: use budget.images."),
        ("trainer.acelerator=gpu", "did you mean trainer.accelerator?"),
        ("logger=wandb", "logger.wandb needs a package that is not installed"),
        ("+logger.mine.word=1", "logger.mine has no _target_: name the class that it is made from."),
        ("+callbacks.mine={_target_:pathlib.PurePath}", "callbacks.mine makes a PurePosixPath, but must make a"),
        ("+callbacks.mine={_target_:no_such.thing}", "_target_ no_such.thing cannot be imported"),
    ],
)
def test_what_cannot_be_is_refused_with_a_sentence(
    argument: str,
    sentence: str,
    lab: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("lightning.pytorch.loggers.wandb._WANDB_AVAILABLE", False)
    assert main(["train", f"out={tmp_path / 'run'}", *SHORT, argument]) == 1
    assert sentence in capsys.readouterr().err.splitlines()[-1]


def test_clipping_by_the_trainer_is_for_one_optimizer(
    lab: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = ("trainer.gradient_clip_val=1.0", "perceptual.run=runs/perceptual")
    assert main(["train", f"out={tmp_path / 'run'}", *small.RUNS["multi"], *asked]) == 1
    assert "use task.clip=1.0" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.slow
def test_ranks_import_from_the_config_dir(conf: Path, lab: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    ranks = ("trainer=ddp", "trainer.accelerator=cpu", "callbacks=[default,watch]", "logger=lines")
    assert main(["train", f"out={run}", *SHORT, *ranks, "--config-dir", str(conf)]) == 0
    assert len(jsonl(run / "watched64.jsonl")) == 2
    lines = jsonl(run / "lines.jsonl")
    assert [sum(name in line for line in lines) for name in ("train/loss", "val/loss", "mine/count")] == [3, 2, 3]


def wandb_records(file: Path) -> Iterator[bytes]:
    """The records of a ``.wandb`` file, a LevelDB log: chunks with a header of 7 bytes in blocks of 32 KiB."""
    data, record = file.read_bytes(), b""
    for block in range(0, len(data), 1 << 15):
        at, end = block + 7 * (block == 0), min(block + (1 << 15), len(data))
        while at + 7 <= end:
            _, length, kind = struct.unpack_from("<IHB", data, at)
            record += data[at + 7 : at + 7 + length]
            if kind in (1, 4):  # whole, or its last part
                yield record
                record = b""
            at += 7 + length


@pytest.mark.slow
def test_wandb_offline_holds_the_numbers_of_the_journal(lab: Path, tmp_path: Path) -> None:
    protocol = pytest.importorskip("wandb.proto.wandb_internal_pb2")
    run = tmp_path / "run"
    assert main(["train", f"out={run}", *SHORT, "logger=[csv,wandb]"]) == 0
    (file,) = run.glob("wandb/offline-run-*/*.wandb")
    rows = [
        {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in map(protocol.Record.FromString, wandb_records(file))
    ]
    losses = [(row["trainer/global_step"], row["train/loss"]) for row in rows if "train/loss" in row]
    assert losses == list(zip((64, 128, 192), small.curve(run, "train/loss"), strict=True))
