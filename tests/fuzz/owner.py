"""One day: the owner of a world runs command after command, and each result is judged."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

from tests.fuzz.desk import quoted
from tests.fuzz.judges import judge_pixels, read_set
from tests.fuzz.pictures import draw
from tests.fuzz.training_steps import RefusedError, Run, TrainingSteps
from tests.fuzz.worlds import Member, World

__all__ = ["Owner"]


class Owner(TrainingSteps):
    """Plays a day."""

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

    def _use(self, task: str) -> Run | None:
        try:
            return self._finished(task)
        except RefusedError:
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
        what = ["task=inpaint"] if label is None else ["task=class", f"label={quoted(label[0])}"]
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


def _numbers(value: object, key: str = "") -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _numbers(item, f"{key}.{name}")
    elif isinstance(value, float):
        yield key, value
