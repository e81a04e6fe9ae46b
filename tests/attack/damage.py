"""Damages to a file, drawn from a random generator: of bytes, of text, of JSON, and of what the file is."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random

from tests.attack.foreign_values import changed, damaged_json

__all__ = ["BYTES", "CHECKED_TAR", "JSON", "LINES", "TEXT", "Damage", "by_suffix", "json_below", "other_kind"]

Damage = Callable[[Random, Path], None]
"""Damages the file at a path."""

Change = Callable[[Random, bytes], bytes]

_NUMBERS = (
    0,
    1,
    2,
    127,
    128,
    255,
    511,
    512,
    513,
    2**15,
    2**16 - 1,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**40,
    2**63 - 1,
    2**64 - 1,
)


def _place(rng: Random, content: bytes) -> int:
    """A place in a file: often near its ends, where headers and tables are."""
    near = min(600, len(content))
    return rng.choice(
        [rng.randrange(len(content) + 1), rng.randrange(near + 1), len(content) - rng.randrange(near + 1)]
    )


def _span(rng: Random, content: bytes) -> tuple[int, int]:
    start = _place(rng, content)
    return start, start + rng.choice([1, 2, 4, 8, 16, 64, 512, 4096, rng.randrange(len(content) + 1)])


def _flip(rng: Random, content: bytes) -> bytes:
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 1, 2, 8]) if data else 0):
        data[min(_place(rng, content), len(data) - 1)] ^= 1 << rng.randrange(8)
    return bytes(data)


def _fill(rng: Random, content: bytes) -> bytes:
    start, end = _span(rng, content)
    return content[:start] + rng.choice([b"\0", b"\xff", b" ", b"9"]) * len(content[start:end]) + content[end:]


def _noise(rng: Random, content: bytes) -> bytes:
    start, end = _span(rng, content)
    return content[:start] + rng.randbytes(len(content[start:end])) + content[end:]


def _cut(rng: Random, content: bytes) -> bytes:
    return content[: _place(rng, content)]


def _grow(rng: Random, content: bytes) -> bytes:
    start, end = _span(rng, content)
    return content + rng.choice(
        [bytes(rng.randrange(1, 2000)), rng.randbytes(rng.randrange(1, 2000)), content[start:end], content]
    )


def _remove(rng: Random, content: bytes) -> bytes:
    start, end = _span(rng, content)
    return content[:start] + content[end:]


def _repeat(rng: Random, content: bytes) -> bytes:
    start, end = _span(rng, content)
    return content[:end] + content[start:end] * rng.choice([1, 1, 2, 40]) + content[end:]


def _splice(rng: Random, content: bytes) -> bytes:
    """Copy one part over another."""
    (start, end), at = _span(rng, content), _place(rng, content)
    part = content[start:end]
    return content[:at] + part + content[at + len(part) :]


def _blocks(rng: Random, content: bytes) -> bytes:
    """Exchange two blocks of 512 bytes."""
    blocks = [content[at : at + 512] for at in range(0, len(content), 512)] or [b""]
    i, j = rng.randrange(len(blocks)), rng.randrange(len(blocks))
    blocks[i], blocks[j] = blocks[j], blocks[i]
    return b"".join(blocks)


def _number(rng: Random, content: bytes) -> bytes:
    """Write a number of usual size over a place, in binary or in digits."""
    at, value = _place(rng, content), rng.choice(_NUMBERS)
    size = rng.choice([1, 2, 4, 8])
    masked = value & (1 << 8 * size) - 1
    part = rng.choice(
        [masked.to_bytes(size, "little"), masked.to_bytes(size, "big"), str(value).encode(), b"-%d" % value]
    )
    return content[:at] + part + content[at + len(part) :]


BYTE_CHANGES: tuple[Change, ...] = (
    _flip,
    _flip,
    _flip,
    _fill,
    _noise,
    _cut,
    _grow,
    _remove,
    _repeat,
    _splice,
    _blocks,
    _number,
)


def _rewritten(changes: Sequence[Change]) -> Damage:
    def damage(rng: Random, path: Path) -> None:
        content = path.read_bytes()
        for _ in range(rng.choice([1, 1, 1, 2, 3])):
            content = rng.choice(changes)(rng, content)
        path.write_bytes(content)

    return damage


BYTES = _rewritten(BYTE_CHANGES)
"""Any bytes become others."""


# -- tars whose headers have a right checksum ----------------------------------------------------------------------------


def _header(rng: Random, content: bytes) -> bytes:
    """Change a field of a tar header and its checksum with it."""
    headers = [at for at in range(0, len(content) - 511, 512) if content[at + 257 : at + 262] == b"ustar"]
    if not headers:
        return content
    at = rng.choice(headers)
    block = bytearray(content[at : at + 512])
    start, size = rng.choice(
        [(0, 100), (100, 8), (124, 12), (124, 12), (124, 12), (136, 12), (156, 1), (157, 100), (257, 8), (345, 155)]
    )
    texts = [
        b"-0000001000",
        b"+1",
        b"0o17",
        b"77777777777",
        b"1_0",
        b"\x80" + rng.randbytes(11),
        b"\xff" * 12,
        b"00000001000",
        b"../../x",
        b"/tmp/x",
        b"0x.pkl",
        b"0" * size,
        rng.randbytes(size),
        bytes([rng.choice(b"LKxgS012345")]),
    ]
    part = rng.choice(texts)[:size]
    block[start : start + len(part)] = part
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return content[:at] + bytes(block) + content[at + 512 :]


CHECKED_TAR = _rewritten((_header, _header, _header, _blocks, _remove))
"""What a tar's headers say becomes something else, with a right checksum."""


# -- text and JSON -------------------------------------------------------------------------------------------------------


def _encoded(rng: Random, text: str) -> bytes:
    """Mostly UTF-8, with half characters if there are any; else another encoding."""
    other = rng.choice(["utf-16", "utf-32", "utf-8-sig", "latin-1", "cp037"])
    return text.encode("utf-8", "surrogatepass") if rng.random() < 0.92 else text.encode(other, "replace")


def _damage_json(rng: Random, path: Path) -> None:
    if rng.random() < 0.12:
        return _rewritten(BYTE_CHANGES)(rng, path)
    path.write_bytes(_encoded(rng, damaged_json(rng, json.loads(path.read_text()))))
    return None


JSON: Damage = _damage_json
"""Parts of a JSON value get other types, sizes and keys; at times the text is damaged."""


def _damage_lines(rng: Random, path: Path) -> None:
    if rng.random() < 0.3:
        return _rewritten(BYTE_CHANGES)(rng, path)
    lines = path.read_text().splitlines()
    at = rng.randrange(len(lines))
    new = [damaged_json(rng, json.loads(lines[at]))] * rng.choice([1, 1, 1, 2, 50])
    path.write_bytes(_encoded(rng, "\n".join([*lines[:at], *new, *lines[at + 1 :]]) + "\n"))
    return None


LINES: Damage = _damage_lines
"""The same for a file with a JSON value a line."""

_WORDS = (
    b"null",
    b"[[[[",
    b"{{",
    b"&a [*a]",
    b"!!python/object/apply:os.system ['touch planted']",
    b"${oc.env:HOME}",
    b"\t",
    b": : :",
    b"\xff\xfe",
    b"'",
    b'"',
    b"\r",
    b"9" * 5000,
    b"\x00",
    b"*",
    b"<<: *a",
    b"---\n",
    b"- " * 3000,
    b"_target_: os.system\n",
    b",,,,",
    b"\xed\xa0\x80",
)


def _word(rng: Random, content: bytes) -> bytes:
    at = _place(rng, content)
    return content[:at] + rng.choice(_WORDS) + content[at + rng.choice([0, 0, 1, 8]) :]


def _encode(rng: Random, content: bytes) -> bytes:
    return content.decode("utf-8", "replace").encode(rng.choice(["utf-16", "utf-32", "utf-8-sig", "cp037"]), "replace")


TEXT = _rewritten((_word, _word, _word, _encode, _flip, _cut, _repeat, _remove, _number))
"""Text gets signs that mean something to a parser, or another encoding."""


def by_suffix(rng: Random, path: Path) -> None:
    """What fits the kind of a file."""
    kinds = {".json": JSON, ".jsonl": LINES, ".csv": TEXT, ".yaml": TEXT, ".log": TEXT, "": TEXT}
    kinds.get(path.suffix, BYTES)(rng, path)


def json_below(*keys: str) -> Damage:
    """Parts of a JSON value below some keys get other types, sizes and keys."""

    def damage(rng: Random, path: Path) -> None:
        value = json.loads(path.read_text())
        part = value
        for key in keys:
            part = part[key]
        hole = "\u2400part\u2400"
        text = json.dumps(changed(value, keys, lambda old: hole))
        path.write_bytes(_encoded(rng, text.replace(json.dumps(hole), damaged_json(rng, part))))

    return damage


def other_kind(rng: Random, path: Path) -> None:
    """Put a pipe, a device, a folder, or a link to nothing or to itself in the place of a file."""
    path.unlink()
    kind = rng.choice(["pipe", "device", "folder", "nothing", "itself", "absent"])
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind != "absent":
        path.symlink_to({"device": "/dev/zero", "nothing": "nowhere", "itself": path.name}[kind])
