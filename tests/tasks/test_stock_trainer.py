"""Tasks under a plain ``lightning.Trainer``: its loop, loggers, checkpoints and ranks, and the bits of ``fit``."""

from __future__ import annotations

import csv
import json
import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from test_ranks import FOLDER, start
from tiny_tasks import (
    BATCH,
    IMAGES,
    Data,
    batch_at,
    classifier_task,
    generator_task,
    held_back_task,
    loader,
    same_state,
    train,
)

from varlab.tasks import Task, TrainerData
from varlab.tasks.loggers import Journal
from varlab.types import Batch, VarlabError

TASKS = [classifier_task, generator_task, held_back_task]
UPDATES = 20
NO_LOOK = {"enable_progress_bar": False, "enable_model_summary": False}


class Plain(LightningDataModule):
    """What anybody writes: an epoch of ten batches, and the images to validate on."""

    def train_dataloader(self) -> Iterable[Batch]:
        return loader(0, 10 * BATCH)

    def val_dataloader(self) -> Iterable[Batch]:
        return loader(0, IMAGES, batch=1)


def own_data() -> TrainerData:
    return TrainerData(Data())


def stock(folder: Path, **settings: Any) -> Trainer:
    settings = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False} | NO_LOOK | settings
    return Trainer(default_root_dir=folder, **settings)


def everything(task: Task) -> dict[str, Any]:
    """All that the updates to come depend on, flat; without the wall clock and what has no meaning under a plain Trainer."""

    def flat(value: Any, path: str) -> dict[str, Any]:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
        return {path: value} if items is None else {k: v for n, x in items for k, v in flat(x, f"{path}/{n}").items()}

    return flat({name: value for name, value in task.state().items() if name not in ("seconds", "pending")}, "")


def same(a: dict[str, Any], b: dict[str, Any]) -> bool:
    """Equal to the last bit."""
    return a.keys() == b.keys() and all(
        torch.equal(value, b[key]) if isinstance(value, torch.Tensor) else value == b[key] for key, value in a.items()
    )


def logged(folder: Path, name: str) -> list[float]:
    """A column of metrics.csv, where it has a value."""
    with next(folder.rglob("metrics.csv")).open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


@pytest.mark.parametrize("make", [*TASKS[:2], pytest.param(TASKS[2], marks=pytest.mark.slow)])
def test_twenty_updates_have_the_losses_and_weights_of_fit(make: Any, tmp_path: Path) -> None:
    ours = train(make(), tmp_path / "ours", images=UPDATES * BATCH, log_every=BATCH)
    task = make()
    loggers = [CSVLogger(tmp_path / "csv"), Journal(directory=tmp_path / "journal")]
    trainer = stock(tmp_path, max_steps=UPDATES, logger=loggers, log_every_n_steps=1)
    trainer.fit(task, datamodule=own_data())
    assert trainer.global_step == UPDATES and task.images == task.total_images == UPDATES * BATCH
    assert same(everything(task), everything(ours))
    lines, others = (
        [json.loads(line) for line in (tmp_path / d / "metrics.jsonl").read_text().splitlines()]
        for d in ("ours", "journal")
    )
    clocked = {"seconds", "epoch", "train/images_per_second", "train/eta_seconds"}
    for prefix in ("train/loss", "val/"):
        a, b = ([x for x in file if any(k.startswith(prefix) for k in x)] for file in (lines, others))
        assert len(b) == (UPDATES if prefix == "train/loss" else 2)
        for line in b:  # validations come after each epoch here, and every 24 images there
            twin = next((x for x in a if x["images"] == line["images"]), line)
            assert {k: v for k, v in line.items() if k not in clocked} == {
                k: v for k, v in twin.items() if k not in clocked
            }
    assert logged(tmp_path / "csv", "train/loss") == [x["train/loss"] for x in lines if "train/loss" in x]


@pytest.mark.parametrize(
    ("make", "make_data"),
    [
        pytest.param(make, data, marks=pytest.mark.slow if (make, data) == (held_back_task, Plain) else ())
        for make in TASKS
        for data in (Plain, own_data)
    ],
)
def test_a_checkpoint_of_lightnings_continues_to_the_same_bits(make: Any, make_data: Any, tmp_path: Path) -> None:
    """After an epoch with a plain loader, which begins again there; in the middle of one with a data module of ours."""
    settings = {"max_steps": UPDATES, "logger": CSVLogger(tmp_path), "enable_checkpointing": True}
    every = (
        {"every_n_train_steps": 13}
        if make_data is own_data
        else {"monitor": "val/loss" if make is not held_back_task else "val/l1"}
    )
    saver = ModelCheckpoint(tmp_path / "saved", filename="{step}", save_top_k=-1, **every)
    whole = make()
    stock(tmp_path, callbacks=[saver], **settings).fit(whole, datamodule=make_data())
    first = 13 if make_data is own_data else 10
    resumed = make()
    torch.manual_seed(99)  # a resumed process has another global state
    trainer = stock(tmp_path, **(settings | {"enable_checkpointing": False}))
    trainer.fit(resumed, datamodule=make_data(), ckpt_path=tmp_path / "saved" / f"step={first}.ckpt")
    assert trainer.global_step == UPDATES and resumed.images == UPDATES * BATCH
    assert same(everything(whole), everything(resumed))


def test_validation_sees_averaged_weights_and_restores_the_own(tmp_path: Path) -> None:
    seen: list[dict[str, torch.Tensor]] = []

    class Look(Callback):
        def on_validation_epoch_end(self, trainer: Any, task: Any) -> None:
            seen.append({name: value.clone() for name, value in task.model.state_dict().items()})
            trainer.save_checkpoint(tmp_path / "inside.ckpt")

    task = generator_task()
    trainer = stock(tmp_path, max_epochs=1, callbacks=[Look()])
    trainer.fit(task, datamodule=Plain())
    assert same_state(seen[-1], task.ema.weights(task.model)) and not same_state(seen[-1], task.model.state_dict())
    saved = torch.load(tmp_path / "inside.ckpt", weights_only=True)["state_dict"]
    assert same_state(saved, task.state_dict())
    assert trainer.callback_metrics["val/nll"] == task.validate(Data().eval_loader("val", 0, 1))["val/nll"]


@pytest.mark.parametrize("make", TASKS)
def test_the_host_waits_for_one_number_of_each_step(make: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between log points; reading a tensor is what makes a host wait for its device."""
    reads: list[str] = []

    def counted(name: str) -> Any:
        plain = getattr(torch.Tensor, name)

        def read(tensor: torch.Tensor, *rest: Any) -> Any:
            if (
                "transformer" not in sys._getframe(1).f_code.co_filename
            ):  # it reads step_L, which is on the CPU for that
                reads.append(name)
            return plain(tensor, *rest)

        return read

    for name in ("tolist", "item", "__bool__", "__float__", "__int__"):
        monkeypatch.setattr(torch.Tensor, name, counted(name))
    monkeypatch.setattr(torch.optim.AdamW, "step", lambda self: None)  # it counts its steps in tensors on the CPU
    task = make()
    task.total_images = 1000
    for number in range(6):
        reads.clear()
        task.begin(batch := batch_at(list(range(8 * number, 8 * number + 8))))
        task.update(batch)
        task.finish()
        assert (number == 0 or reads) and len(reads) <= len(task.optims), reads


def test_what_a_task_cannot_follow_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VarlabError, match="max_steps or max_epochs"):
        stock(tmp_path, max_epochs=-1).fit(generator_task(), datamodule=Plain())
    with pytest.raises(VarlabError, match="set micro_batch"):
        stock(tmp_path, max_steps=2, accumulate_grad_batches=2).fit(generator_task(), datamodule=Plain())
    with pytest.raises(VarlabError, match="bf16-mixed or 32-true"):
        stock(tmp_path, max_steps=2, precision="16-true").fit(generator_task(), datamodule=Plain())
    not_wrapped: Any = Data()
    with pytest.raises(VarlabError, match=r"datamodule=TrainerData\(data\)"):
        stock(tmp_path, max_steps=2).fit(generator_task(), datamodule=not_wrapped)


def test_the_trainers_clipping_replaces_the_tasks(tmp_path: Path) -> None:
    tasks = [generator_task(clip=None), generator_task(clip=None), generator_task(clip=0.5)]
    for task, value in zip(tasks, (0.5, None, None), strict=True):
        stock(tmp_path, max_steps=4, gradient_clip_val=value).fit(task, datamodule=own_data())
    a, b, c = (task.model.state_dict() for task in tasks)
    assert same_state(a, c) and not same_state(a, b)


def test_the_example_of_the_documentation_runs(lab: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (FOLDER.parents[1] / "docs" / "lightning.md").read_text()
    (example,) = re.findall(r"```python\n(from functools.*?)```", text, re.DOTALL)
    (tmp_path / "runs").symlink_to(lab)
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(example, names)
    assert names["task"].images == 6 * -(-names["data"].info.counts["train"] // 64) * 64
    assert names["saver"].best_model_score > 0.5


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stock")
    start(FOLDER / "stock_ranks.py", 2, str(folder))
    return folder


@pytest.mark.parametrize("name", ["classifier", "generator", "tokenizer"])
def test_two_ranks_of_ddp_have_the_bits_of_fit(name: str, two: Path) -> None:
    ranks = [json.loads((two / f"{name}{rank}.json").read_text()) for rank in range(2)]
    assert ranks[0] == ranks[1]
    assert ranks[0]["ours"] == ranks[0]["ddp"] == ranks[0]["ddp_find_unused_parameters_true"]
