"""The steps of a day that make and look at data."""

from __future__ import annotations

from tests.fuzz.desk import Desk, quoted
from tests.fuzz.judges import judge_set
from tests.fuzz.reader import judge_reader

__all__ = ["DataSteps"]


class DataSteps(Desk):
    """Packs, indexes and checks the world."""

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
        assert self._data is not None
        if self._day.world.kind != "shards":
            self._do(["index", self._data.name, "workers=0"], self._data.name)
            self._note(list(judge_set(self._world, self._data, self._known, size=None)))
            return
        words = [word for word in self._world.words if not word.startswith("max_bad")]
        words = [word if not word.startswith("label=") else f"source.{word}" for word in words]
        words = [word if not word.startswith("classes=") else f"source.{word}" for word in words]
        path = quoted(self._data.name)
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
