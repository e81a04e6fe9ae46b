"""What a user begins with: a folder of pictures, or shards, or Parquet, with oddities; and what each file must come to."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.pictures import BROKEN, Picture, draw

__all__ = ["CLASS_NAMES", "FOLDER_ODDITIES", "LAYOUTS", "PLACES", "Member", "World", "WorldPlan", "make_folder"]

PLACES = (
    "photos",
    "my photos (1)",
    "données été",
    "写真",
    "it's",
    "a#b & c",
    "{x}[1]",
    "50% off",
    "a=b",
    "x,y",
    "$HOME~",
)
"""Names of the folder of a world."""

CLASS_NAMES = (
    ("cat", "dog"),
    ("dog", "cat", "emu"),
    ("0", "1", "10", "2"),
    ("tench, Tinca tinca", "goldfish"),
    ("null", "true"),
    ("it's", "a b"),
    ("été", "猫"),
    ("face",),
    ("[x]", "y=1"),
)

LAYOUTS: dict[str, tuple[str | None, str | None]] = {
    "classes": (None, None),
    "train, val": ("train", "val"),
    "train, test": ("train", "test"),
    "Training, Validation": ("Training", "Validation"),
    "train, valid": ("train", "valid"),
    "classes above splits": ("train", "val"),
}
"""Folders of the splits; the last has them in each class."""


@dataclass(frozen=True)
class WorldPlan:
    """How to make a world. picture_kinds: of a third of the pictures of each class. count: pictures of a class."""

    kind: str
    place: str
    classes: tuple[str, ...]
    layout: str
    count: int
    picture_kinds: tuple[str, ...]
    oddities: tuple[str, ...]


@dataclass(frozen=True)
class Member:
    """A file of a world.

    fate: used: it must be a sample; named: it must be none, and the log names it; either: one of both; not: it must be no
    sample. hint: what of it the log must show, if it is no sample. label, split: None for any.
    """

    stem: str
    label: str | None
    split: str | None
    fate: str
    hint: str
    picture: Picture | None


@dataclass
class World:
    """A folder of files. may_refuse: whether one sentence is a right answer. words: that the command needs for it."""

    plan: WorldPlan
    root: Path
    members: list[Member] = field(default_factory=list)
    words: list[str] = field(default_factory=list)
    may_refuse: bool = False
    has_val: bool = True
    """Whether some image must be for validation."""

    @property
    def labels(self) -> set[str]:
        """The classes that have images."""
        return {member.label for member in self.members if member.label is not None and member.fate == "used"}

    @property
    def depths(self) -> dict[str, int]:
        """The bits of the largest integers in its pictures."""
        deep = [m.picture.deep_HW for m in self.members if m.picture is not None and m.picture.deep_HW is not None]
        largest = max([int(values.max()) for values in deep if values.dtype.kind != "f"], default=0)
        return {"integer": next(bits for bits in (8, 10, 12, 14, 16) if largest < 1 << bits)}

    def next_stem(self) -> str:
        """A name that no other file has."""
        return f"p{len(self.members):04d}"

    def put(self, path: str, content: bytes) -> None:
        """Write a file."""
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)

    def add(
        self, folder: str, kind: str, *, label: str | None, split: str | None = None, fate: str = "used",
        ending: str | None = None, number: int | None = None,
    ) -> str:  # fmt: skip
        """Write a picture into a folder; returns its path."""
        stem = self.next_stem()
        picture = draw(kind, len(self.members) if number is None else number)
        end = picture.ending if ending is None else ending
        path = f"{folder}/{stem}{'.' if end else ''}{end}"
        self.put(path, picture.encoded)
        self.members.append(Member(stem, label, split, fate, stem, picture))
        return path


def make_folder(plan: WorldPlan, root: Path) -> World:
    """Write a folder of pictures."""
    world = World(plan, root)
    train, val = LAYOUTS[plan.layout]
    for name in plan.classes:
        for i in range(plan.count):
            kind = plan.picture_kinds[i // 3 % len(plan.picture_kinds)] if i % 3 == 2 else ("jpg", "png")[i % 2]
            world.add(folder_of(plan, name, train), kind, label=name, split=train and "train")
        for _ in range(2 if val else 0):
            world.add(folder_of(plan, name, val), "png", label=name, split="val")
    world.has_val = bool(val) or plan.count > 3
    for oddity in plan.oddities:
        FOLDER_ODDITIES[oddity](world)
    return world


def folder_of(plan: WorldPlan, name: str, split: str | None) -> str:
    """Where the pictures of a class and split lie."""
    if split is None:
        return name
    return f"{name}/{split}" if plan.layout == "classes above splits" else f"{split}/{name}"


def _first(world: World) -> tuple[str, str]:
    """The folder of the first class, and its name."""
    name = world.plan.classes[0]
    return folder_of(world.plan, name, LAYOUTS[world.plan.layout][0]), name


def _loop(world: World) -> None:
    (world.root / _first(world)[0] / "up").symlink_to("..")


def _hidden(world: World) -> None:
    folder, _ = _first(world)
    world.put(f"__MACOSX/{folder}/._p0000.jpg", b"\0\5\x16\7" * 8)
    world.put(f"{folder}/Thumbs.db", b"\0" * 64)
    for place in (f"{folder}/.ipynb_checkpoints", f"{folder}/@eaDir/p0000.jpg"):
        world.add(place, "jpg", label=None, fate="not")


def _empty_class(world: World) -> None:
    train = LAYOUTS[world.plan.layout][0]
    (world.root / folder_of(world.plan, "aempty", train)).mkdir(parents=True)


def _broken(world: World) -> None:
    folder, name = _first(world)
    for kind in BROKEN:
        if kind != "huge":
            world.add(folder, kind, label=name, fate="named")


def _huge(world: World) -> None:
    folder, name = _first(world)
    world.add(folder, "huge", label=name, fate="named")


def _endings(world: World) -> None:
    """Usual pictures with unusual endings, and what is no picture at all."""
    folder, name = _first(world)
    split = LAYOUTS[world.plan.layout][0] and "train"
    for ending in ("jpe", "JPG", "", "jp2"):
        path = world.add(folder, "jpg", label=name, split=split, fate="either", ending=ending)
        member = world.members[-1]
        world.members[-1] = Member(
            member.stem, name, split, "either", f".{ending}" if ending else "none", member.picture
        )
        assert path
    world.put(f"{folder}/notes.txt", b"hello")
    world.members.append(Member("notes", None, None, "named", ".txt", None))


def _stray(world: World) -> None:
    """A picture beside the class folders."""
    world.put("stray.jpg", draw("jpg", 90).encoded)
    world.members.append(Member("stray", None, None, "named", "stray", None))


def _links(world: World) -> None:
    """A picture elsewhere that a link leads to; a link to nothing; the same picture by a second link."""
    folder, name = _first(world)
    split = LAYOUTS[world.plan.layout][0] and "train"
    stem, picture = world.next_stem(), draw("png", len(world.members))
    elsewhere = world.root.parent / "elsewhere" / f"{stem}.png"
    elsewhere.parent.mkdir(exist_ok=True)
    elsewhere.write_bytes(picture.encoded)
    (world.root / folder / f"{stem}.png").symlink_to(elsewhere)
    world.members.append(Member(stem, name, split, "used", stem, picture))
    (world.root / folder / "lost.png").symlink_to("nowhere.png")
    world.members.append(Member("lost", None, None, "named", "lost", None))


def _pipe(world: World) -> None:
    os.mkfifo(world.root / _first(world)[0] / "pipe.jpg")
    world.members.append(Member("pipe", None, None, "named", "pipe", None))


def _twins(world: World) -> None:
    """The same pixels in train and in val."""
    train, val = LAYOUTS[world.plan.layout]
    for name in world.plan.classes if val else ():
        world.add(folder_of(world.plan, name, train), "png", label=name, split="train", number=7)
        world.add(folder_of(world.plan, name, val), "png", label=name, split="val", number=7)


def _odd_names(world: World) -> None:
    """Names of files that no shell likes, and one that is no UTF-8."""
    folder, name = _first(world)
    split = LAYOUTS[world.plan.layout][0] and "train"
    for text in ("a'b\"c", "x\ny", "-rf", "%s {0} $HOME", os.fsdecode(b"caf\xe9")):
        stem = world.next_stem()
        picture = draw("png", len(world.members))
        world.put(f"{folder}/{text} {stem}.png", picture.encoded)
        world.members.append(Member(stem, name, split, "used", stem, picture))


FOLDER_ODDITIES: dict[str, Callable[[World], None]] = {
    "link to a parent": _loop,
    "hidden folders": _hidden,
    "empty class": _empty_class,
    "broken pictures": _broken,
    "huge picture": _huge,
    "other endings": _endings,
    "stray picture": _stray,
    "links": _links,
    "pipe": _pipe,
    "twins in both splits": _twins,
    "odd names": _odd_names,
}
