"""Worlds of shards and of Parquet files."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

from tests.fuzz.pictures import Picture, draw
from tests.fuzz.worlds import Member, World, WorldPlan

__all__ = ["PARQUET_ODDITIES", "SHARD_ODDITIES", "make_parquet", "make_shards"]


def make_shards(plan: WorldPlan, root: Path) -> World:
    """Write two tars of train and one of val, whose labels are names in a JSON member."""
    world = World(plan, root)
    world.words = ["label=json:label", "max_bad=0.5"]
    for file, split, count in (
        ("train-000000.tar", "train", 3),
        ("train-000001.tar", "train", 3),
        ("val-000000.tar", "val", 2),
    ):
        samples = []
        for i in range(count * len(plan.classes)):
            kind = plan.picture_kinds[i // 3 % len(plan.picture_kinds)] if i % 3 == 2 else "jpg"
            samples.append(_sample(world, kind, plan.classes[i % len(plan.classes)], split))
        _write(root / file, samples)
    for oddity in plan.oddities:
        SHARD_ODDITIES[oddity](world)
    return world


def _sample(world: World, kind: str, label: str, split: str | None, fate: str = "used") -> list[tuple[str, bytes]]:
    """The members of a sample, which becomes a member of the world."""
    stem, picture = world.next_stem(), draw(kind, len(world.members))
    world.members.append(Member(stem, label, split, fate, stem, picture))
    return _members(stem, picture, label)


def _members(stem: str, picture: Picture, label: str) -> list[tuple[str, bytes]]:
    return [(f"{stem}.{picture.ending}", picture.encoded), (f"{stem}.json", json.dumps({"label": label}).encode())]


def _write(path: Path, samples: list[list[tuple[str, bytes]]], notes: tuple[str, ...] = ()) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name in notes:
            _add(tar, name, b"note")
        for name, content in [member for sample in samples for member in sample]:
            _add(tar, name, content)


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def _more(world: World, file: str, *, n: int = 3, split: str | None = "train", notes: tuple[str, ...] = ()) -> Path:
    """Write one more shard."""
    classes = world.plan.classes
    _write(world.root / file, [_sample(world, "jpg", classes[i % len(classes)], split) for i in range(n)], notes)
    return world.root / file


def _joined(world: World) -> None:
    """``cat a.tar b.tar``: the second lies behind the end mark of the first."""
    first, second = _more(world, "train-000002.tar"), _more(world, "b.tar")
    first.write_bytes(first.read_bytes() + second.read_bytes())
    second.unlink()


def _words_in_names(world: World) -> None:
    _more(world, "retrieval-000000.tar")
    _more(world, "latest-000000.tar")


def _classes_file(world: World) -> None:
    """Names of classes, in a file that Windows saved."""
    path = world.root.parent / "classes.txt"
    path.write_bytes(("\ufeff" + "\r\n".join(sorted(world.plan.classes)) + "\r\n").encode())
    world.words.append(f"classes={path}")


def _zipped(world: World) -> None:
    """A shard that gzip compressed, under its old name: a sentence about gzip is right."""
    path = _more(world, "train-000003.tar")
    path.write_bytes(gzip.compress(path.read_bytes()))
    for i, member in enumerate(world.members[-3:]):
        world.members[len(world.members) - 3 + i] = Member(
            member.stem, member.label, member.split, "either", "gzip", member.picture
        )
    world.may_refuse = True


def _notes(world: World) -> None:
    _more(world, "train-000004.tar", notes=("README", "classes.txt", ".DS_Store", "__meta__.json"))
    if not {"broken pictures", "cut shard"} & set(world.plan.oddities):
        world.words = [word if word != "max_bad=0.5" else "max_bad=0.001" for word in world.words]


def _links(world: World) -> None:
    """A sample whose label is a hard link to that of the sample before it."""
    label = world.plan.classes[0]
    with tarfile.open(world.root / "train-000005.tar", "w") as tar:
        first = _sample(world, "jpg", label, "train")
        for name, content in first:
            _add(tar, name, content)
        (image, content), (text, _) = _sample(world, "jpg", label, "train")
        _add(tar, image, content)
        link = tarfile.TarInfo(text)
        link.type, link.linkname = tarfile.LNKTYPE, first[1][0]
        tar.addfile(link)


def _cut(world: World) -> None:
    """A download that stopped in the middle of the second sample."""
    path = _more(world, "train-000006.tar")
    first = world.members[-3].picture
    assert first is not None
    at = 512 + -(-len(first.encoded) // 512) * 512 + 1024 + 512 + 100
    path.write_bytes(path.read_bytes()[:at])
    for i in (-2, -1):
        member = world.members[i]
        world.members[i] = Member(member.stem, member.label, member.split, "named", path.name, member.picture)


def _broken(world: World) -> None:
    _write(
        world.root / "train-000007.tar",
        [_sample(world, kind, world.plan.classes[0], "train", "named") for kind in ("cut", "empty")],
    )


def _no_val(world: World) -> None:
    """No shard is for validation."""
    (world.root / "val-000000.tar").rename(world.root / "more-000000.tar")
    world.members = [Member(m.stem, m.label, "train", m.fate, m.hint, m.picture) for m in world.members]
    world.has_val = False


SHARD_ODDITIES: dict[str, Callable[[World], None]] = {
    "joined tars": _joined,
    "val inside a word": _words_in_names,
    "classes file of Windows": _classes_file,
    "gzip": _zipped,
    "notes in a shard": _notes,
    "hard links": _links,
    "cut shard": _cut,
    "broken pictures": _broken,
    "no val shard": _no_val,
}


def make_parquet(plan: WorldPlan, root: Path) -> World:
    """Write a file with images and labels in columns."""
    import pyarrow
    from pyarrow import parquet

    world = World(plan, root)
    root.mkdir(parents=True, exist_ok=True)
    numbered = "float labels" in plan.oddities or "bool labels" in plan.oddities
    rows: list[bytes] = []
    labels: list[object] = []
    for i in range(plan.count * len(plan.classes)):
        kind = plan.picture_kinds[i // 3 % len(plan.picture_kinds)] if i % 3 == 2 else "jpg"
        label = i % 2 if numbered else i % len(plan.classes)
        stem, picture = f"{i:08d}", draw(kind, i)  # the key of a row is its number
        name = str(label) if numbered else plan.classes[label]
        world.members.append(
            Member(stem, None if "bool labels" in plan.oddities else name, None, "used", stem, picture)
        )
        rows.append(picture.encoded)
        labels.append(
            float(label) if "float labels" in plan.oddities else bool(label) if "bool labels" in plan.oddities else name
        )
    table = {"image": pyarrow.array(rows), "label": pyarrow.array(labels)}
    parquet.write_table(pyarrow.table(table), root / "x.parquet")
    world.may_refuse = "bool labels" in plan.oddities
    return world


PARQUET_ODDITIES = ("float labels", "bool labels")
