"""One day: the owner of a world runs command after command, and each result is judged."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tests.fuzz.archives import make_parquet, make_shards
from tests.fuzz.commands import Answer, Fault, call
from tests.fuzz.days import CHANGES, Day
from tests.fuzz.judges import broken_files, drafts, judge_answer, judge_pixels, judge_set, read_set, read_tensors
from tests.fuzz.pictures import draw
from tests.fuzz.reader import judge_reader
from tests.fuzz.worlds import Member, World, make_folder

__all__ = ["WORKS", "Owner", "quoted"]

WORKS: dict[str, bool] = {
    "paths as they are typed": False,
    "names of classes as labels": False,
    "left-over environments": False,
    "a resumed run with other settings": False,
    "a longer budget": False,
    "a branch of a run": False,
    "a stop saves": False,
    "an index elsewhere": True,
    "a refused command leaves no directory": False,
}
"""What must work; where it is False, one sentence is a right answer, too."""

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
class _Run:
    out: str
    task: str
    words: list[str]


def quoted(text: str) -> str:
    """A value in Hydra's quotes."""
    return "'" + text.replace("'", "\\'") + "'"


class Owner:
    """Plays a day in a folder. found: what was wrong. done: how often which action came to which end."""

    def __init__(self, day: Day, folder: Path, *, base_mib: int, strict: bool):
        self._day, self._folder, self._base, self._strict = day, folder, base_mib, strict
        self.found: list[str] = []
        self.done: Counter[tuple[str, str]] = Counter()
        self.commands: list[str] = []
        self._runs: list[_Run] = []
        self._step = day.steps[0]
        self._data: Path | None = None
        make = {"folder": make_folder, "shards": make_shards, "parquet": make_parquet}[day.world.kind]
        self._world: World = make(day.world, folder / day.world.place)

    def play(self) -> None:
        """Do every step; the rest is left out if the data cannot be packed."""
        for step in self._day.steps:
            self._step = step
            actions: dict[str, Callable[[], None]] = {
                "pack": self._pack, "pack again": self._pack_again, "index elsewhere": self._index_elsewhere,
                "check": self._check, "train": self._train, "again": self._again, "extend": self._extend,
                "branch": self._branch, "sample": self._sample, "edit": self._edit, "encode": self._encode,
                "evaluate": self._evaluate, "report": self._report,
            }  # fmt: skip
            before = len(self.found)
            try:
                actions[step.action]()
            except Exception as error:
                self._note([f"result: {type(error).__name__} {str(error)[:300]}"])
            end = "fault" if len(self.found) > before else self._end
            self.done[step.action, end] += 1
            if self._data is None:
                return

    # -- commands ----------------------------------------------------------------------------------------------------------

    def _note(self, found: Sequence[str]) -> None:
        self.found += [f"{self._step}: {text}" for text in found]

    def _works(self, what: str) -> bool:
        return self._strict or WORKS[what]

    def _call(self, words: Sequence[str], out: str, *, fault: Fault | None = None, plain: bool = False) -> Answer:
        """Run a command and judge how it ended. plain: without the environment of the step."""
        environment = "plain" if plain else self._step.environment
        answer = call(words, folder=self._folder, out=self._folder / out, fault=fault, environment=environment)
        said = "" if fault is None else f"  # {fault.kind} at moment {fault.moment}" + " (struck)" * answer.struck
        self.commands.append(
            f"[{environment}] varlab {' '.join(map(repr, words))}{said} → {answer.code} {answer.seconds:.1f} s "
            f"{answer.said.strip()[-300:]!r}"
        )
        self._note(list(judge_answer(answer, self._base)))
        self._end = "right" if answer.code == 0 else "a sentence"
        if (self._folder / out).is_dir():
            self._note(list(broken_files(self._folder / out)))
            if answer.code == 0 and (left := drafts(self._folder / out)):
                self._note([f"drafts: {left} are left"])
        return answer

    def _call_there(self, words: Sequence[str], out: str) -> Answer:
        """Run a command in the environment of the step; and without it, where a refusal is allowed."""
        answer = self._call(words, out)
        if answer.code == 1 and self._step.environment != "plain" and not self._works("left-over environments"):
            answer = self._call(words, out, plain=True)
        return answer

    def _do(self, words: Sequence[str], out: str, *, can_refuse: bool = False) -> Answer:
        """Run a command with the step's fault, and then again without it, until it is done."""
        fault, answer = self._step.fault, None
        if fault is not None and not (
            self._day.world.kind == "shards" and out == self._day.world.place and fault.kind == "vanished"
        ):
            answer = self._call(words, out, fault=fault)
            if answer.code not in (0, None) and not answer.struck and not can_refuse:
                answer = None  # judged below
        if answer is None or answer.struck:
            answer = self._call_there(words, out)
        if answer.code not in (0, None) and not can_refuse:
            self._note([f"refused: {answer.said.strip()[-400:]}"])
        return answer

    # -- data --------------------------------------------------------------------------------------------------------------

    def _pack(self) -> None:
        size, workers = self._step.settings["size"], self._step.settings["workers"]
        kind, place = self._day.world.kind, self._day.world.place
        if kind == "shards":
            size = None

        def words(path: str) -> list[str]:
            if kind == "shards":
                return ["index", f"path={path}", *self._world.words, f"workers={workers}"]
            name = "null" if size is None else size
            source = [f"source={kind}", f"path={path}", f"source.size={name}", "source.val_fraction=0.25"]
            return ["pack", *source, "out=data", f"workers={workers}"]

        out = place if kind == "shards" else "data"
        typed = words(place)
        if place != "photos":
            read = self._call([*typed, "--cfg", "job"], out, plain=True)  # reads what was typed, and does nothing
            if read.code != 0 and quoted(place) not in read.said and self._works("paths as they are typed"):
                self._note([f"refused: {read.said.strip()[-300:]}"])
            typed = typed if read.code == 0 else words(quoted(place))
        answer = self._do(typed, out, can_refuse=self._world.may_refuse)
        if answer.code != 0:
            return
        data = self._folder / out
        said = answer.said + "".join(file.read_text() for file in [data / "run.json"] if file.exists())
        self._size = size
        self._note(list(judge_set(self._world, data, said, size=size if isinstance(size, int) else None)))
        self._note(list(judge_reader(self._world, data)))
        self._data = data

    def _pack_again(self) -> None:
        """The same pack again has nothing to do; shards are packed."""
        if self._day.world.kind != "shards":
            self._do(["index", "data", "workers=0"], "data")
            self._note(list(judge_set(self._world, self._folder / "data", self._known, size=None)))
            return
        words = [word for word in self._world.words if not word.startswith("max_bad")]
        words = [word if not word.startswith("label=") else f"source.{word}" for word in words]
        words = [word if not word.startswith("classes=") else f"source.{word}" for word in words]
        path = quoted(self._day.world.place)
        out = f"packed{len(self.commands)}"
        self._do(["pack", "source=tars", f"path={path}", "source.size=16", f"out={out}", "workers=0", *words], out)
        self._note(list(judge_set(self._world, self._folder / out, self._known, size=16)))

    def _index_elsewhere(self) -> None:
        assert self._data is not None
        out = f"index{len(self.commands)}"
        words = self._world.words if self._day.world.kind == "shards" else []
        self._do(["index", f"path={quoted(self._data.name)}", f"out={out}", "workers=0", *words], out)
        self._note(list(judge_set(self._world, self._folder / out, self._known, size=None)))

    @property
    def _known(self) -> str:
        """What the first command said already: all that is passed over."""
        return " ".join(["aempty", *(member.hint for member in self._world.members)])

    def _check(self) -> None:
        assert self._data is not None
        out = f"check{len(self.commands)}"
        label = ["label=json:label"] if self._day.world.kind == "shards" else []
        path = f"path={quoted(self._data.name)}"
        answer = self._do(["index", path, "check=true", f"out={out}", "workers=0", *label], out)
        if answer.code == 0 and "is whole" not in answer.said:
            self._note([f"result: {answer.said[-200:]}"])

    # -- training ----------------------------------------------------------------------------------------------------------

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

    def _finished(self, task: str) -> _Run:
        """A finished run of a task, which is trained if there is none. Raises RuntimeError if that is refused."""
        for run in self._runs:
            if run.task == task:
                return run
        assert self._data is not None
        out = f"runs/{task}"
        run = _Run(out, task, self._words(task, out, data=self._data.name))
        answer = self._call(run.words, out, plain=True)
        if answer.code != 0:
            self._judge_refusal(answer, out, task)
            raise _RefusedError
        self._note(list(self._judge_run(out, _IMAGES)))
        self._runs.append(run)
        return run

    def _train(self) -> None:
        task, change = str(self._step.settings["task"]), str(self._step.settings["change"])
        assert self._data is not None
        try:
            out = f"runs/{task}-{len(self.commands)}"
            words = self._words(task, out, data=self._data.name)
        except _RefusedError:
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
        self._runs.append(_Run(out, task, words))

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
            if moved:
                self._data = data
            return changed, answer
        if moved:
            data.rename(self._data)
        if "holds a run of another configuration" not in answer.said and change != "moved data":
            return changed, answer
        if self._works("a resumed run with other settings"):
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

    def _longer(self, run: _Run, changes: list[str], out: str, what: str) -> None:
        keys = {word.partition("=")[0] for word in changes} | {"out"}
        words = [word for word in run.words if word.partition("=")[0] not in keys] + changes + [f"out={out}"]
        answer = self._do(words, out, can_refuse=not self._works(what))
        if answer.code == 0:
            self._note(list(self._judge_run(out, 2 * _IMAGES)))
            self._note(list(self._compare(words, out, run.task, 2 * _IMAGES)))
            if out == run.out:
                run.words = words

    # -- what runs are for -------------------------------------------------------------------------------------------------

    def _use(self, task: str) -> _Run | None:
        try:
            return self._finished(task)
        except _RefusedError:
            return None

    def _label(self) -> tuple[str, int] | None:
        """The name and the number of the last class."""
        assert self._data is not None
        classes = json.loads((self._data / "index.json").read_text())["classes"]
        return (classes[-1], len(classes) - 1) if len(classes) > 1 else None

    def _sample(self) -> None:
        if (run := self._use("generator")) is None:
            return
        out, label = f"sample{len(self.commands)}", self._label()
        self._do(["sample", run.out, "n=2", f"out={out}", *([] if label is None else [f"labels=[{label[1]}]"])], out)
        samples = np.load(self._folder / out / "samples.npz")
        if samples["arr_0"].shape != (2, 16, 16, 3) or (
            label is not None and set(samples["arr_1"].tolist()) != {label[1]}
        ):
            self._note([f"result: {samples['arr_0'].shape} of {samples['arr_1']}"])
        if label is None:
            return
        named = f"{out}-named"
        answer = self._call(
            ["sample", run.out, "n=2", f"out={named}", f"labels=[{quoted(label[0])}]"], named, plain=True
        )
        if answer.code == 0 and (np.load(self._folder / named / "samples.npz")["arr_0"] != samples["arr_0"]).any():
            self._note([f"label: {label[0]!r} draws another class than {label[1]}"])
        elif answer.code == 1 and self._works("names of classes as labels"):
            self._note([f"refused: {answer.said.strip()[-300:]}"])

    def _edit(self) -> None:
        """Edit a picture of the world's kind; with the name of a class if there are some."""
        if (run := self._use("generator")) is None:
            return
        out, label = f"edit{len(self.commands)}", self._label()
        is_huge = "huge picture" in self._day.world.oddities
        picture = draw("huge" if is_huge else self._day.world.picture_kinds[0], 50)
        file = self._folder / f"picture.{picture.ending}"
        file.write_bytes(picture.encoded)
        what = ["task=inpaint"] if label is None else ["task=class", f"label={label[0]}"]
        words = ["edit", run.out, f"image={file.name}", "box=[0,0,0.5,0.5]", "n=1", f"out={out}", *what]
        answer = self._do(words, out, can_refuse=is_huge)
        if answer.code == 0:
            seen = np.load(self._folder / out / "edit.npz")["image"]
            alone = World(
                self._day.world, self._folder, members=[member := Member("picture", None, None, "used", "", picture)]
            )
            self._note(list(judge_pixels(alone, member, seen, 16, "in edit")))

    def _encode(self) -> None:
        if (run := self._use("tokenizer")) is None:
            return
        assert self._data is not None
        out = f"tokens{len(self.commands)}"
        self._do(["encode", run.out, f"out={out}"], out)
        counts = {s: sum(len(np.load(f)) for f in (self._folder / out).glob(f"{s}-0*.npy")) for s in ("train", "val")}
        right = Counter(row.split for row in read_set(self._data))
        if any(counts[split] != right[split] for split in counts):
            self._note([f"accounting: tokens of {counts} images, not {dict(right)}"])

    def _evaluate(self) -> None:
        if (run := self._use("tokenizer")) is None or self._use("classifier") is None:
            return
        self._do(["evaluate", run.out], run.out)
        files = list((self._folder / run.out / "scores").glob("*.json"))
        if not files:
            self._note(["result: no scores"])
        for file in files:
            for key, value in _numbers(json.loads(file.read_text())):
                if not np.isfinite(value) or ("ratio" in key and abs(value) > 1e4):
                    self._note([f"result: the score {key} is {value}"])

    def _report(self) -> None:
        runs = [run.out for run in self._runs] or [self._finished_or_none()]
        if runs == [None]:
            return
        out = f"report{len(self.commands)}"
        self._do(["report", "runs", f"out={out}"], out)
        text = (self._folder / out / "report.html").read_text()
        if missing := [run for run in runs if run not in text]:
            self._note([f"accounting: the report lacks {missing}"])

    def _finished_or_none(self) -> str | None:
        run = self._use("tokenizer")
        return run and run.out

    def clear(self) -> None:
        """Remove the day's files."""
        shutil.rmtree(self._folder, ignore_errors=True)


class _RefusedError(Exception):
    """A run that another needs was refused."""


def _numbers(value: object, key: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _numbers(item, f"{key}.{name}")
    elif isinstance(value, float):
        yield key, value
