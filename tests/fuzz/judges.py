"""Whether a shard set and files are right, judged without the package's own readers where that is possible."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import zipfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from tests.fuzz.commands import Answer
from tests.fuzz.pictures import expected
from tests.fuzz.worlds import Member, World

__all__ = [
    "Row",
    "broken_files",
    "drafts",
    "is_of",
    "judge_answer",
    "judge_pixels",
    "judge_set",
    "read_set",
    "read_tensors",
]

_MOST_MIB = 400  # that a command may take beside what it begins with


@dataclass(frozen=True)
class Row:
    """A sample of a shard set. label: the name of its class, None in a set of one. img_HW3: as an image viewer shows it."""

    key: str
    split: str
    label: str | None
    encoded: bytes


# -- what a command said -------------------------------------------------------------------------------------------------


def judge_answer(answer: Answer, base_mib: int) -> Iterator[str]:
    """What is wrong with how a command ended."""
    said = answer.said
    if answer.code is None:
        yield f"hangs: {said[-1500:]}"
        return
    if "Traceback" in said or "unexpected " in said:
        yield f"traceback: {said[-1500:]}"
    elif answer.code not in (0, -9, -15, 130, 143):
        lines = [line for line in said.splitlines() if line.strip()]
        last = lines[-1] if lines else ""
        if answer.code != 1 or not last.startswith("varlab") or len(last) < 20:
            yield f"no sentence (exit code {answer.code}): {said[-500:]}"
    if answer.mib > base_mib + _MOST_MIB:
        yield f"memory: {answer.mib - base_mib} MiB for tiny pictures"


# -- shard sets ----------------------------------------------------------------------------------------------------------


def read_set(folder: Path, shards: Path | None = None) -> list[Row]:
    """The samples of a shard set, by its index and tables, read with numpy."""
    index = json.loads((folder / "index.json").read_text())
    classes, rows = index["classes"], []
    place = shards or folder / index.get("shards", ".")
    for split, table in index["tables"].items():
        samples = np.load(folder / table["file"])
        assert len(samples) == table["count"], f"the table of {split} has {len(samples)} rows, not {table['count']}"
        files = [(place / shard["file"]).read_bytes() for shard in index["splits"][split]]
        for content, shard in zip(files, index["splits"][split], strict=True):
            assert hashlib.sha256(content).hexdigest() == shard["sha256"], f"{shard['file']} is not the indexed one"
        for row in samples:
            start = int(row["offset"])
            label = classes[int(row["label"])] if len(classes) > 1 else None
            key = row["key"].decode(errors="replace")
            rows.append(Row(key, split, label, files[int(row["shard"])][start : start + int(row["size"])]))
    return rows


def judge_set(world: World, folder: Path, said: str, *, size: int | None) -> Iterator[str]:
    """What is wrong with a shard set that was made from a world. size: of its images, None if they are as they were."""
    rows = read_set(folder)
    members = [(member, [row for row in rows if is_of(row, member)]) for member in world.members]
    for member, found in members:
        yield from _judge_member(world, member, found, said)
    if extra := [row.key for row in rows if not any(row in found for _, found in members)]:
        yield f"accounting: samples that nobody put there: {extra[:4]}"
    classes = json.loads((folder / "index.json").read_text())["classes"]
    if (
        len(world.labels) > 1
        and (empty := sorted(set(classes) - world.labels))
        and not all(name in said for name in empty)
    ):
        yield f"classes: {empty} without images, without a word"
    if size is not None:
        for member, found in members:
            if found and member.picture is not None:
                yield from judge_pixels(world, member, np.asarray(_opened(found[0].encoded)), size, "packed")


def is_of(row: Row, member: Member) -> bool:
    """Whether a sample comes from a file."""
    return row.key == member.stem or row.key.endswith(("-" + member.stem, "_" + member.stem))


def _judge_member(world: World, member: Member, found: list[Row], said: str) -> Iterator[str]:
    if len(found) > 1:
        yield f"accounting: {member.stem} is {len(found)} samples"
    elif found and member.fate in ("not", "named"):
        yield f"accounting: {member.stem} ({member.fate}) became a sample"
    elif not found and member.fate == "used":
        yield f"accounting: {member.stem} of {member.label} is no sample" + (" (named)" if member.hint in said else "")
    elif not found and member.fate in ("named", "either") and member.hint not in said:
        yield f"accounting: {member.stem} ({member.hint}) is passed over without a word"
    if found and member.label is not None and len(world.labels) > 1 and found[0].label != member.label:
        yield f"label: {member.stem} of {member.label!r} has the class {found[0].label!r}"
    # of images without any val ones, packing holds some out
    if found and world.has_val and member.split is not None and found[0].split != member.split:
        yield f"split: {member.stem} of {member.split} is in {found[0].split}"


def judge_pixels(world: World, member: Member, seen: NDArray[np.uint8], size: int, where: str) -> Iterator[str]:
    """Compare what is seen of a picture with what it shows."""
    assert member.picture is not None
    if member.picture.img_HW3 is None and member.picture.deep_HW is None:
        return
    right = expected(member.picture, size, world.depths)
    if seen.shape != right.shape:
        yield f"pixels: {member.stem} {where} has the shape {seen.shape}, not {right.shape}"
        return
    error = float(np.abs(seen.astype(float) - right).mean())
    if error > member.picture.tolerance:
        yield f"pixels: {member.stem} {where} differs by {error:.0f} from what it shows ({seen.mean():.0f}, {right.mean():.0f})"


def _opened(encoded: bytes) -> Image.Image:
    return Image.open(io.BytesIO(encoded)).convert("RGB")


# -- files ---------------------------------------------------------------------------------------------------------------


def drafts(folder: Path) -> list[str]:
    """Temporary files."""
    ends = (".tmp", ".part", ".partial")
    return [
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.name.endswith(ends) or path.name == ".packing"
    ]


def broken_files(folder: Path) -> Iterator[str]:
    """Files that are not whole under their final names."""
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or path.name.startswith(".") or ".packing" in path.parts:
            continue
        try:
            _check(path)
        except Exception as error:
            yield f"half a file: {path.relative_to(folder)}: {type(error).__name__} {error}"


def _check(path: Path) -> None:
    """Raises an exception if a file is not whole."""
    match path.suffix:
        case ".json":
            json.loads(path.read_text())
        case ".jsonl":
            for line in path.read_text().splitlines():
                json.loads(line)
        case ".safetensors":
            read_tensors(path)
        case ".npy" | ".npz":
            loaded = np.load(path)
            with suppress(AttributeError):
                for name in loaded.files:
                    loaded[name]
        case ".ckpt":
            with zipfile.ZipFile(path) as archive:
                assert archive.testzip() is None
        case ".png":
            Image.open(path).load()
        case ".html":
            assert path.read_text().rstrip().endswith("</html>")


def read_tensors(path: Path) -> dict[str, NDArray[np.generic]]:
    """The tensors of a safetensors file. Raises AssertionError if the file is cut or too long."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, data = json.loads(content[8 : 8 + length]), content[8 + length :]
    tensors, end = {}, 0
    for name, entry in header.items():
        if name != "__metadata__":
            first, last = entry["data_offsets"]
            end = max(end, last)
            dtype = {"F32": np.float32, "I64": np.int64, "F64": np.float64, "BOOL": np.bool_}.get(
                entry["dtype"], np.uint8
            )
            tensors[name] = np.frombuffer(data[first:last], dtype)
    assert end == len(data), f"{len(data)} bytes of tensors, not {end}"
    return tensors
