"""Where the samples of a WebDataset tar lie: its headers read once, so that any sample can be fetched by offset."""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from varlab.errors import VarlabError

__all__ = ["FORMATS", "Place", "scan"]

FORMATS = {"png": "PNG", "jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP"}
"""The endings that are decoded, with Pillow's names for them. Nothing else is: least of all a pickle."""

CONDITION = "cond.png"
"""The ending of a sample's second image."""

BLOCK = 512


@dataclass(frozen=True)
class Place:
    """One sample: its image is ``size`` bytes from ``offset`` on, in Pillow's ``format``. condition: (offset, size) of the
    second image, a PNG. box: of the image in the picture that it was cut from. None where there is none.
    """

    key: str
    offset: int
    size: int
    format: str
    label: int
    condition: tuple[int, int] | None = None
    box: tuple[float, ...] | None = None


def scan(path: Path, *, classes: int, boxes: bool = False) -> Iterator[Place]:
    """The samples of a shard in order. Members with unknown endings are passed over, and a JSON where no boxes are wanted.

    Raises:
        VarlabError: a damaged tar, a sample without image or label, a label outside [0, classes).
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as tar:
        key, members = "", dict[str, tuple[int, int]]()
        for name, offset, size in _members(tar, path):
            folder, _, base = name.rpartition("/")
            stem, _, ending = base.partition(".")  # WebDataset cuts at the first dot of the base name
            following = f"{folder}/{stem}" if folder else stem
            if following != key and members:
                yield _place(tar, path, key, members, classes, boxes)
                members = {}
            key = following
            members[ending.lower()] = offset, size
        if members:
            yield _place(tar, path, key, members, classes, boxes)


def _place(
    tar: mmap.mmap, path: Path, key: str, members: dict[str, tuple[int, int]], classes: int, boxes: bool
) -> Place:
    ending = next((e for e in members if e in FORMATS), None)
    if ending is None or "cls" not in members:
        lacks = f"an image ({', '.join(FORMATS)})" if ending is None else "its class (cls)"
        raise VarlabError(f"Sample {key} in {path} lacks {lacks}: keep each sample's members together.")
    offset, size = members["cls"]
    text = tar[offset : offset + size].strip()
    if not text.isdigit() or int(text) >= classes:
        shown = text[:20].decode(errors="replace")
        raise VarlabError(f"Sample {key} in {path} has the label {shown!r}, not one of 0 to {classes - 1}.")
    offset, size = members[ending]
    box = _box(tar, path, key, members) if boxes else None
    return Place(key, offset, size, FORMATS[ending], int(text), members.get(CONDITION), box)


def _box(tar: mmap.mmap, path: Path, key: str, members: dict[str, tuple[int, int]]) -> tuple[float, ...]:
    """The box that a sample's JSON tells."""
    try:
        offset, size = members["json"]
        top, left, bottom, right = map(float, json.loads(tar[offset : offset + size])["box"])
    except (ValueError, TypeError, LookupError) as e:
        raise VarlabError(f"Sample {key} in {path} does not tell its box ({e}): pack the set again.") from e
    return top, left, bottom, right


def _members(tar: mmap.mmap, path: Path) -> Iterator[tuple[str, int, int]]:
    """(name, offset, size) of every plain file in the archive (ustar; pax records that rename nothing are fine)."""
    at, end = 0, len(tar)
    while at + BLOCK <= end:
        header = tar[at : at + BLOCK]
        if not any(header):
            return
        try:
            size = int(header[124:136].strip(b" \0") or b"0", 8)
        except ValueError:
            size = -1
        kind, offset = header[156:157], at + BLOCK
        if header[257:262] != b"ustar" or size < 0 or offset + size > end:
            raise VarlabError(f"The shard {path} is damaged at byte {at}: pack it again.")
        if kind in b"LK" or (kind == b"x" and b" path=" in tar[offset : offset + size]):
            raise VarlabError(f"The shard {path} has a name over 100 characters at byte {at}: use shorter ones.")
        if kind in b"0\0":
            prefix, name = (_text(header[a:b]) for a, b in ((345, 500), (0, 100)))
            yield (f"{prefix}/{name}" if prefix else name), offset, size
        at = offset + -(-size // BLOCK) * BLOCK


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", errors="replace")
