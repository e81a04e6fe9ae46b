"""Compressed shards, which have no places to read samples from: found before anything is scanned, with the remedy."""

from __future__ import annotations

import logging
import shlex
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path

from varlab.errors import VarlabError

__all__ = ["check_packing"]

log = logging.getLogger(__name__)

_TOOLS = {  # first bytes: the name, the usual ending, the program that unpacks it
    b"\x1f\x8b": ("gzip-compressed", ".gz", "gunzip"),
    b"BZh": ("bzip2-compressed", ".bz2", "bunzip2"),
    b"\xfd7zXZ\0": ("xz-compressed", ".xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd-compressed", ".zst", "unzstd --rm"),
    b"\x04\x22\x4d\x18": ("lz4-compressed", ".lz4", "unlz4 --rm"),
}
_OTHERS = {
    b"PK\x03\x04": "a zip archive: unpack it with `unzip`, and pack its folder with `varlab pack source=folder`",
    b"version https://git-lfs": "a pointer of Git LFS and not the file itself: run `git lfs pull` in its folder",
}
_ENDINGS = {".tgz": "gunzip", ".tbz": "bunzip2", ".tbz2": "bunzip2", ".txz": "unxz", ".tzst": "unzstd --rm"}
_ENDINGS |= {f".tar{ending}": tool for _, ending, tool in _TOOLS.values()}
_HEAD = max(map(len, [*_TOOLS, *_OTHERS]))


def check_packing(folder: Path, files: Sequence[str], *, beside: Collection[str]) -> None:
    """Look at the first bytes of the shards, and for compressed ones among all files, which are named in the log.

    Raises:
        VarlabError: a shard is compressed, or there are only compressed ones; the sentence has the command that unpacks it.
    """
    for file in files:
        _check_head(folder / file)
    packed = Counter(ending for file in beside if (ending := _ending_of(file)) and not _is_twin(file, ending, beside))
    if packed and not files:
        ending, n = packed.most_common(1)[0]
        raise VarlabError(
            f"{folder} holds {n} compressed shards (*{ending}) and no *.tar: unpack them with "
            f"`find {shlex.quote(str(folder))} -name '*{ending}' -exec {_ENDINGS[ending]} {{}} +`."
        )
    if packed:
        names = ", ".join(f"{n} *{ending}" for ending, n in packed.items())
        log.warning("%s: %s are passed over; unpack them to have their samples, too", folder, names)


def _check_head(path: Path) -> None:
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return  # the scan names it
    for magic, (what, ending, tool) in _TOOLS.items():
        if head.startswith(magic):
            old, new = shlex.quote(str(path)), shlex.quote(f"{path}{ending}")
            raise VarlabError(f"{path} is {what}: unpack it with `mv {old} {new} && {tool} {new}`.")
    for magic, what in _OTHERS.items():
        if head.startswith(magic):
            raise VarlabError(f"{path} is {what}.")


def _ending_of(name: str) -> str | None:
    return next((ending for ending in _ENDINGS if name.lower().endswith(ending)), None)


def _is_twin(file: str, ending: str, beside: Collection[str]) -> bool:
    """Whether the unpacked shard lies beside it."""
    return f"{file[: len(file) - len(ending)]}.tar" in beside
