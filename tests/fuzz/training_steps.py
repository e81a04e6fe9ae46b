"""The steps of a day that train: runs that are stopped, resumed, extended and branched."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tests.fuzz.commands import Answer
from tests.fuzz.data_steps import DataSteps
from tests.fuzz.days import CHANGES
from tests.fuzz.desk import quoted
from tests.fuzz.judges import read_tensors

__all__ = ["RefusedError", "Run", "TrainingSteps"]

_SMALL = {
    "classifier": ("classifier.channels=[8,8,16]", "classifier.groups=4", "role=judge"),
    "tokenizer": (
        "tokenizer=single",
        "tokenizer.scales=[[4,4]]",
        "tokenizer.channels=8",
        "tokenizer.groups=4",
        "tokenizer.vocab_size=16",
        "tokenizer.code_dim=4",
        "perceptual=none",
        "discriminator=none",
        "task.revival=null",
        "pictures.count=2",
    ),
    "generator": (
        "order=raster",
        "transformer.width=16",
        "transformer.depth=1",
        "transformer.heads=1",
        "pictures.count=2",
    ),
}
_BATCH, _IMAGES, _EVERY = 8, 32, 16
_SAVED = re.compile(r"after (\d+) images, all saved")
_BEGINS = re.compile(r"resuming at (\d+) images; (\d+) are trained again")
_COMMON = (
    "trainer.precision=32-true",
    "log.every=16",
    "val.every=16",
    "data=shards",
    "data.workers=0",
    f"data.batch={_BATCH}",
    f"checkpoint.every={_EVERY}",
    "tensorboard=false",
    "task.schedule.shape=constant",  # so that a run can go on
    "task.schedule.warmup=8",
)
_ROUNDING = 0.02  # by which weights differ that equal each other but for rounding, after four updates


@dataclass
class Run:
    out: str
    task: str
    words: list[str]


class RefusedError(Exception):
    """A run that another needs was refused."""


class TrainingSteps(DataSteps):
    """Trains small models on the world."""

    @cached_property
    def _runs(self) -> list[Run]:
        """Those that are finished."""
        return []

    def _words(self, task: str, out: str, *, data: str, images: int = _IMAGES) -> list[str]:
        words = [
            "train",
            f"task={task}",
            *_SMALL[task],
            *_COMMON,
            f"data.path={quoted(data)}",
            f"budget.images={images}",
        ]
        if task == "generator":
            words.append(f"tokenizer_run={self._finished('tokenizer').out}")
        size = ["data.size=16"] if self._size != 16 else []
        return [*words, *size, f"out={out}"]

    def _finished(self, task: str) -> Run:
        """A finished run of a task, which is trained if there is none. Raises RuntimeError if that is refused."""
        for run in self._runs:
            if run.task == task:
                return run
        assert self._data is not None
        out = f"runs/{task}" if not (self._folder / "runs" / task).exists() else f"runs/{task}-{len(self.commands)}"
        run = Run(out, task, self._words(task, out, data=self._data.name))
        answer = self._call(run.words, out, plain=True)
        if answer.code != 0:
            self._judge_refusal(answer, out, task)
            raise RefusedError
        self._note(list(self._judge_run(out, _IMAGES)))
        self._runs.append(run)
        return run

    def _train(self) -> None:
        task, change = str(self._step.settings["task"]), str(self._step.settings["change"])
        assert self._data is not None
        try:
            out = f"runs/{task}-{len(self.commands)}"
            words = self._words(task, out, data=self._data.name)
        except RefusedError:
            return
        answer = self._call(words, out, fault=self._step.fault)
        if answer.code != 0 and not answer.struck:
            answer = self._call_there(words, out)
            if answer.code != 0:
                return self._judge_refusal(answer, out, task)
        if answer.code != 0 or CHANGES[change] or change == "moved data":
            stopped = answer
            words, answer = self._resume(words, out, change)
            self._note(list(self._judge_saved(stopped, answer)))
            if answer.code != 0:
                return self._judge_refusal(answer, out, task)
        self._note(list(self._judge_run(out, _IMAGES)))
        if self._step.fault is not None:
            self._note(list(self._compare(words, out, task, _IMAGES)))
        self._runs.append(Run(out, task, words))

    def _resume(self, words: list[str], out: str, change: str) -> tuple[list[str], Answer]:
        """Run the command again, with something changed that has no influence on the weights."""
        assert self._data is not None
        moved = change == "moved data"
        if moved:
            data = self._folder / f"moved{len(self.commands)}"
            self._data.rename(data)
        changed = [
            word for word in words if word.partition("=")[0] not in {w.partition("=")[0] for w in CHANGES[change]}
        ]
        changed += CHANGES[change]
        if moved:
            changed = [f"data.path={data.name}" if word.startswith("data.path=") else word for word in changed]
        answer = self._call_there(changed, out)
        if answer.code == 0:
            if moved:  # the runs before look for their images at the old place
                self._data = data
                self._runs.clear()
            return changed, answer
        if moved:
            data.rename(self._data)
        if "holds a run of another configuration" not in answer.said and change != "moved data":
            return changed, answer
        if self._works("a resumed run with other settings") and self._world.has_val:
            self._note([f"refused: {answer.said.strip()[-300:]}"])
        return words, self._call(words, out, plain=True)

    def _judge_saved(self, stopped: Answer, resumed: Answer) -> Iterator[str]:
        """What was said to be saved is there, and no more is trained again than the settings allow."""
        saved, begins = _SAVED.search(stopped.said), _BEGINS.search(resumed.said)
        asked = self._step.fault is not None and self._step.fault.kind in ("term", "interrupt")
        if saved and (begins is None or begins[1] != saved[1]):
            yield f"lost: {saved[0]}, but {begins and begins[0]}"
        elif begins and int(begins[2]) > (0 if asked and self._works("a stop saves") else _EVERY):
            yield f"lost: {begins[0]}"

    def _compare(self, words: list[str], out: str, task: str, images: int) -> Iterator[str]:
        """Compare with a run that was never stopped."""
        assert self._data is not None
        straight = f"{out}-straight"
        answer = self._call(self._words(task, straight, data=self._data.name, images=images), straight, plain=True)
        if answer.code != 0:
            yield f"refused: {answer.said[-300:]}"
            return
        for name in ("weights.safetensors", "weights_raw.safetensors"):
            one, other = (read_tensors(self._folder / run / name) for run in (out, straight))
            exact = not any(word in words for word in CHANGES["micro-batches"])
            if any(
                (one[key] != other[key]).any() if exact else not np.allclose(one[key], other[key], atol=_ROUNDING)
                for key in other
            ):
                yield f"bits: {name} of {out} differs from a run that was never stopped"

    def _judge_run(self, out: str, images: int) -> Iterator[str]:
        """Judge a run that says that it is finished."""
        folder = self._folder / out
        state = json.loads((folder / "run.json").read_text())["outcome"]["state"]
        if state != "finished":
            yield f"result: the run is {state}"
        if (progress := int((folder / "progress").read_text())) != images:
            yield f"accounting: {progress} images, not {images}"
        for name in ("weights.safetensors", "weights_raw.safetensors"):
            for key, tensor in read_tensors(folder / name).items():
                if not np.isfinite(tensor.astype(np.float64)).all():
                    yield f"result: {key} of {name} is not finite"
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        counts = [line["images"] for line in lines if "train/loss" in line or "train/l1" in line]
        if counts != sorted(set(counts)):
            yield f"accounting: metrics.jsonl counts {counts}"
        if "classifier" in out and len(self._world.labels) == 1:
            yield "result: a classifier of one class is finished"

    def _judge_refusal(self, answer: Answer, out: str, task: str) -> None:
        """A training may be refused for its data, before its first update."""
        if answer.code is None:
            return
        folder = self._folder / out
        if (folder / "progress").exists() and int((folder / "progress").read_text()) > 0:
            self._note([f"lost: trained, and then: {answer.said.strip()[-300:]}"])
        elif folder.exists() and self._step.fault is None and self._works("a refused command leaves no directory"):
            self._note([f"directory: {out} is left by {answer.said.strip()[-200:]}"])
        one_class = task == "classifier" and len(self._world.labels) < 2
        if not (one_class or not self._world.has_val):
            self._note([f"refused: {answer.said.strip()[-300:]}"])

    def _again(self) -> None:
        if self._runs:
            run = self._runs[-1]
            before = (self._folder / run.out / "weights.safetensors").read_bytes()
            self._do(run.words, run.out)
            if (self._folder / run.out / "weights.safetensors").read_bytes() != before:
                self._note(["result: a finished run changed"])

    def _extend(self) -> None:
        if self._runs:
            run = self._runs[-1]
            self._longer(run, [f"budget.images={2 * _IMAGES}"], run.out, "a longer budget")

    def _branch(self) -> None:
        if self._runs:
            run, out = self._runs[-1], f"runs/branch{len(self.commands)}"
            self._longer(run, [f"from={run.out}", f"budget.images={2 * _IMAGES}"], out, "a branch of a run")

    def _longer(self, run: Run, changes: list[str], out: str, what: str) -> None:
        keys = {word.partition("=")[0] for word in changes} | {"out"}
        words = [word for word in run.words if word.partition("=")[0] not in keys] + changes + [f"out={out}"]
        answer = self._do(words, out, can_refuse=not self._works(what))
        if answer.code == 0:
            self._note(list(self._judge_run(out, 2 * _IMAGES)))
            self._note(list(self._compare(words, out, run.task, 2 * _IMAGES)))
            if out == run.out:
                run.words = words
