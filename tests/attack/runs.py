"""The formats of runs: records, weights, checkpoints, metrics, scores, sweeps, pictures, and what a command reads of them."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from pathlib import Path
from random import Random

import torch
from torch import Tensor

import varlab
from tests import small
from tests.attack.damage import BYTES, JSON, LINES, TEXT, by_suffix, json_below
from tests.attack.shards import mark
from tests.attack.stored import answer, overrides, put
from tests.attack.trial import Format, Reading
from tests.report import make_runs
from varlab.checkpoint import load_checkpoint, read_metadata, read_weights, save_checkpoint, save_weights
from varlab.checkpoint.formats.state import read_state
from varlab.config import Config
from varlab.data.image.augment import Augment
from varlab.data.shard_module import ShardDataModule
from varlab.losses import weights as loss_weights
from varlab.recipe.finished_run import FinishedRun
from varlab.recipe.parents import Parents
from varlab.report import find_runs, read_run, write_report
from varlab.report.log_points import read_log_points
from varlab.report.sweep_table import SweepJob, add_jobs, read_rows, update_row, update_table
from varlab.run import provenance
from varlab.run.directory import RunDirectory
from varlab.run.record import read_record
from varlab.run.trust import named_targets
from varlab.tasks.loggers.journal import Journal

__all__ = ["FORMATS"]

_STATE = {
    "a": torch.arange(300.0),
    "b": torch.arange(7),
    "empty": torch.zeros(0),
    "half": torch.ones(3, 5, dtype=torch.bfloat16),
}
_CHECKPOINT: Config = {
    "config_hash": "x",
    "modules": {"model": _STATE},
    "images": 32,
    "betas": (0.9, 0.95),
    "rng": [1, 2],
}


def _tensors(state: Mapping[str, object]) -> dict[str, str]:
    """A mark of each tensor, and of each other value."""
    found = {}
    for name, value in state.items():
        if isinstance(value, Tensor):
            found[name] = mark(
                value.dtype, value.shape, value.view(torch.uint8).numpy().tobytes() if value.numel() else b""
            )
        elif isinstance(value, Mapping):
            found |= {f"{name}.{key}": item for key, item in _tensors(value).items()}
        else:
            found[name] = mark(value)
    return found


# -- weights and checkpoints ---------------------------------------------------------------------------------------------


def _write_weights(folder: Path) -> None:
    save_weights(folder / "weights.safetensors", _STATE, {"images": "32"})


def _weights(folder: Path) -> Reading:
    path = folder / "weights.safetensors"
    return {**_tensors(read_weights(path)), "metadata": mark(read_metadata(path))}, False


def _write_checkpoint(folder: Path) -> None:
    save_checkpoint(folder / "last.ckpt", _CHECKPOINT)


def _checkpoint(folder: Path) -> Reading:
    return _tensors(load_checkpoint(folder / "last.ckpt")), False


def _write_foreign(folder: Path) -> None:
    torch.save(_STATE, folder / "a.pth")
    torch.save({"state_dict": _STATE, "epoch": 3}, folder / "b.ckpt", _use_new_zipfile_serialization=False)


def _foreign(folder: Path) -> Reading:
    found: dict[str, object] = {}
    for name in ("a.pth", "b.ckpt"):
        found |= {f"{name} {key}": value for key, value in _tensors(read_state(folder / name)).items()}
        found |= {
            f"{name} loss {key}": value for key, value in _tensors(loss_weights.read_state(folder / name)).items()
        }
        found |= {f"{name} as ours {key}": value for key, value in _tensors(load_checkpoint(folder / name)).items()}
    return found, False


_OPCODES = (
    b"cposix\nsystem\n(S'touch planted'\ntR",
    b"cbuiltins\nexec\n(S'import os'\ntR",
    b"\x8c\x05posix\x8c\x06system\x93(\x8c\x01xtR",
    b"ctorch\nload\n(S'x'\ntR",
    b"(i__main__\nX\n",
    b"P1\n",
    b"\x8a\xff" + b"9" * 255,
    b"X\xff\xff\xff\x7f",
    b"2" * 200,
    b"]" * 5000,
    b"h\x00",
)


def _plant_opcodes(rng: Random, path: Path) -> None:
    """Put opcodes of a pickle among those of a checkpoint."""
    content = path.read_bytes()
    if not zipfile.is_zipfile(io.BytesIO(content)):
        at = rng.randrange(len(content))
        path.write_bytes(content[:at] + rng.choice(_OPCODES) + content[at:])
        return
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        for member in old.infolist():
            data = old.read(member)
            at = rng.randrange(len(data) + 1) if member.filename.endswith("data.pkl") else None
            new.writestr(member, data if at is None else data[:at] + rng.choice(_OPCODES) + data[at:])
    path.write_bytes(buffer.getvalue())


# -- a run that is loaded ------------------------------------------------------------------------------------------------


def _one_run(folder: Path) -> None:
    put(folder, "next_scale")


def _loaded(folder: Path) -> Reading:
    model = varlab.load(folder / "runs" / "next_scale")
    found = {f"tokenizer {name}": value for name, value in _tensors(model.tokenizer.state_dict()).items()}
    assert model.transformer is not None
    images = model.sample([0], seed=0)
    return found | _tensors(model.transformer.state_dict()) | {"sample": mark(images.numpy().tobytes())}, False


def _run_and_data(folder: Path) -> None:
    put(folder, "next_scale", "data/letters")


_ASKED = {"threads": None, "weights": "ema", "device": "cpu", "trust": None, "data": None}


def _opened(folder: Path) -> Reading:
    """The images that a run's record names, and the sampler that it describes."""
    run = FinishedRun(_ASKED | {"run": str(folder / "runs" / "next_scale")})
    data = run.data()
    batch = data.samples("val", torch.arange(3))
    return {"images": mark(batch.img_u8_B3HW.numpy().tobytes()), "labels": mark(batch.label_B.tolist())}, bool(
        batch.faults
    )


def _parents(folder: Path) -> None:
    put(folder, "multi", "judge", "data/letters")


def _taken(folder: Path) -> Reading:
    """The tokenizer and the judge of a training."""
    info = ShardDataModule(
        path=folder / "runs" / "data" / "letters",
        batch=4,
        eval_batch=4,
        seed=0,
        workers=0,
        cache_bytes=0,
        augment=Augment(flip=False, crop=1.0, noise=0.0),
    ).info
    parents = Parents(info=info, near=folder / "runs" / "new")
    tokenizer = parents.tokenizer(str(folder / "runs" / "multi"), order={})
    judge = parents.classifier("judge", str(folder / "runs" / "judge"))
    return _tensors(tokenizer.state_dict()) | _tensors(judge.state_dict()) | {"used": mark(parents.used)}, False


def _begun(folder: Path) -> Reading:
    """What a resumed run keeps of itself."""
    run = folder / "runs" / "next_scale"
    with RunDirectory(run) as directory:
        asked = read_record(folder / "asked")
        finished = not directory.prepare(asked)
    return {"": mark(finished, read_record(run).attempts)}, False


def _run_and_asked(folder: Path) -> None:
    put(folder, "next_scale")
    record = small.record(folder / "runs" / "next_scale")
    provenance.hardware()  # the first call in a process starts a program
    (folder / "asked").mkdir()
    (folder / "asked" / "run.json").write_text(json.dumps(record))
    record["outcome"] = {"state": "stopped", "images": 64}
    (folder / "runs" / "next_scale" / "run.json").write_text(json.dumps(record))


def _stopped(folder: Path) -> None:
    put(folder, "stopped/asked_generator", "multi", "data/letters", "tokens", "judge")


def _resumed(folder: Path) -> Reading:
    words = json.loads((folder / "words").read_text())
    return answer("train", "out=runs/stopped/asked_generator", *words)


def _stopped_with_words(folder: Path) -> None:
    _stopped(folder)
    (folder / "words").write_text(json.dumps(overrides(folder / "runs" / "stopped" / "asked_generator")))


def _half_encoded(folder: Path) -> None:
    put(folder, "multi", "data/letters", "tokens")
    tokens = folder / "runs" / "tokens"
    (folder / "words").write_text(json.dumps(overrides(tokens)))
    for name in ("tokens.json", "val-000000.npy", "val.labels.npy"):
        (tokens / name).unlink()
    record = small.record(tokens)
    (tokens / "run.json").write_text(json.dumps(record | {"outcome": {"state": "running"}}))


def _encoded(folder: Path) -> Reading:
    return answer("encode", *json.loads((folder / "words").read_text()))


# -- reports and sweeps --------------------------------------------------------------------------------------------------


def _write_run(folder: Path) -> None:
    make_runs.generator(folder / "run", order="raster")


def _metrics(folder: Path) -> Reading:
    points, fault = read_log_points(folder / "run" / "metrics.jsonl")
    return {"": mark(points)}, bool(fault)


def _journal(folder: Path) -> Reading:
    """What a resumed training does with its metrics."""
    journal = Journal(directory=folder / "run")
    journal.cut(30_000)
    return {"": mark(journal.last_values())}, False


def _record(folder: Path) -> Reading:
    run = read_run(folder / "run")
    return {
        "": mark(
            run.record,
            run.scores and (run.scores[0].values, run.scores[0].protocol),
            run.name,
            run.total("images"),
            run.order,
        )
    }, (run.state == "unreadable" or bool(run.faults))


def _study(folder: Path) -> None:
    """A sound run, another, and a sweep of two with a job that never began."""
    make_runs.generator(folder / "runs" / "sound", order="raster")
    make_runs.generator(folder / "runs" / "other", order="next_scale", fid=12, pictures=True)
    make_runs.regressor(folder / "runs" / "sweep" / "a", report={"title": "Regressors", "columns": {"error": "min"}})
    make_runs.generator(folder / "runs" / "sweep" / "b", order="raster", seed=1)
    add_jobs(folder / "runs" / "sweep", [SweepJob((f"seed={i}",), name) for i, name in enumerate("abc")])


def _report(folder: Path) -> Reading:
    """A report over all runs, in which the sound one must be."""
    text = write_report([folder / "runs"], folder / "out", title="t").html.read_text()
    assert f"<code>{(folder / 'runs' / 'sound').as_posix()}</code>" in text, "the sound run is not in the report"
    assert "<script>alert" not in text and len(text) < 5_000_000
    return {
        "": mark([(run.state, run.name, len(run.metrics)) for run in find_runs([folder / "runs"])])
    }, "Could not be read" in text


def _sweep(folder: Path) -> Reading:
    sweep = folder / "runs" / "sweep"
    update_row(sweep, "a")
    update_table(sweep)
    return {"": mark(read_rows(sweep), (sweep / "sweep.csv").read_text())}, False


# -- YAML ----------------------------------------------------------------------------------------------------------------


def _write_yaml(folder: Path) -> None:
    put(folder, "raster")
    (folder / "conf" / "order").mkdir(parents=True)
    config = json.loads((folder / "runs" / "raster" / "run.json").read_text())["config"]
    lines = [f"{key}: {json.dumps(value)}" for key, value in config["order"].items()]
    (folder / "conf" / "order" / "mine.yaml").write_text("\n".join(lines) + "\n")


def _yaml(folder: Path) -> Reading:
    """The part of a record that a user copied into a YAML file: what it names, and a command that composes it."""
    targets = named_targets(folder / "conf")
    value, named = answer(
        "train", "--config-dir", "conf", "order=mine", "task=generator", "data=folder", "--cfg", "job"
    )
    return {**value, "targets": mark(sorted(targets))}, named


_RECORD, _PARENTS = ("runs/next_scale/run.json",), ("runs/multi/run.json", "runs/judge/run.json")
_WEIGHTS = ("runs/*/weights.safetensors", "runs/*/tokenizer.safetensors")
_STOPPED = ("runs/stopped/asked_generator/**/*", "runs/tokens/**/*")
_ANY, _SWEEP = ("runs/other/**/*", "runs/sweep/**/*"), ("runs/sweep/**/*.json", "runs/sweep/sweep.csv")

FORMATS = (
    Format("weights", _write_weights, _weights, ("weights.safetensors",), BYTES, cases=500),
    Format("checkpoint", _write_checkpoint, _checkpoint, ("last.ckpt",), BYTES, cases=500),
    Format("checkpoint of others", _write_foreign, _foreign, ("*",), BYTES, verified=False, cases=200),
    Format("checkpoint with code", _write_foreign, _foreign, ("*",), _plant_opcodes, verified=False, cases=250),
    Format("weights of a run", _one_run, _loaded, _WEIGHTS, BYTES, cases=60),
    Format("record, loaded", _one_run, _loaded, _RECORD, json_below("build"), verified=False, cases=250),
    Format("record's images", _run_and_data, _opened, _RECORD, json_below("config", "data"), verified=False, cases=150),
    Format("parents' records", _parents, _taken, _PARENTS, json_below("build"), verified=False, cases=150),
    Format("record, resumed", _run_and_asked, _begun, ("runs/*/run.json",), JSON, verified=False, cases=150),
    Format("record", _write_run, _record, ("run/run.json",), JSON, verified=False, cases=300),
    Format("scores", _write_run, _record, ("run/scores/*.json",), JSON, verified=False, cases=200),
    Format("metrics.jsonl", _write_run, _metrics, ("run/metrics.jsonl",), LINES, verified=False, cases=250),
    Format("metrics.jsonl, resumed", _write_run, _journal, ("run/metrics.jsonl",), LINES, verified=False, cases=150),
    Format("report", _study, _report, _ANY, by_suffix, verified=False, cases=80),
    Format("sweep", _study, _sweep, _SWEEP, by_suffix, verified=False, cases=250),
    Format("training, resumed", _stopped_with_words, _resumed, _STOPPED, by_suffix,
           verified=False, cases=30),
    Format("encoding, continued", _half_encoded, _encoded, ("runs/tokens/*",), by_suffix, verified=False, cases=40),
    Format("yaml", _write_yaml, _yaml, ("conf/*/*.yaml",), TEXT, verified=False, other_kinds=False, cases=60),
)  # fmt: skip
