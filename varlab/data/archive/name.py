"""What the name of a member says: the key and the ending of its sample, or that it belongs to none."""

from __future__ import annotations

import re
from functools import lru_cache

from varlab.data.folders.picture_files import is_system
from varlab.data.format.table import CONDITION, FORMATS

__all__ = ["OTHER_IMAGES", "PORTABLE", "READ", "has_firm_end", "is_image", "is_known_note", "is_read", "parse_name"]

PORTABLE = dict.fromkeys(["ppm", "pgm", "pbm", "pnm"], "PPM")
"""Endings of images that the first bytes do not show for certain."""

OTHER_IMAGES = {
    "jpe",
    "jfif",
    "jif",
    "pjpeg",
    "bmp",
    "dib",
    "tif",
    "tiff",
    "gif",
    "apng",
    "avif",
    "avifs",
    "jp2",
    "j2k",
}
OTHER_IMAGES |= {
    "jpc",
    "jpf",
    "jpx",
    "jxl",
    "heic",
    "heif",
    "hif",
    "mpo",
    "qoi",
    "psd",
    "dds",
    "img",
    "image",
    "",
    *PORTABLE,
}
"""Endings of members that may be images: their content decides."""

READ = {*FORMATS, *OTHER_IMAGES, CONDITION, "cls", "json"}
"""The endings of members that are read; no other member is ever decoded, nor unpickled."""

_FIRM = {"png", "jpg", "jpeg", "cls", "json", "txt"}

_PAX_HEADERS = re.compile(r"PaxHeaders?(\..+)?")  # folders, where a program did not know pax
_NOTES = re.compile(
    r"read_?me|licen[cs]e|copying|notice|authors|citation|changelog|class(?:es)?|(?:class|label)_?(?:names|map|list)"
    r"|__.+__|labels|categories|dataset(?:_?(?:info|infos|dict))?|meta(?:_?data)?|info|index|manifest|stats|state|sizes|version",
    re.IGNORECASE,
)


def parse_name(name: str) -> tuple[str, str, str | None]:
    """The key; the ending in small letters; and, for a member that no sample can have, how to count it as a note.

    WebDataset cuts at the first dot of the base name. Folders are divided by ``/`` or, by writers on Windows, by a backslash.
    """
    at = max(name.rfind("/"), name.rfind("\\")) + 1
    dot = name.find(".", at)
    key, ending = (name, "") if dot < 0 else (name[:dot], name[dot + 1 :].lower())
    note = _note_of_folders(name[:at]) if at else None
    if note is None and (ending not in _FIRM or dot == at or name.startswith(("_", "."), at)):
        note = _note_of_part(name[at:], is_first=not at)
    return key, ending, note


@lru_cache(maxsize=4096)
def _note_of_folders(folders: str) -> str | None:
    parts = re.split(r"[/\\]", folders)
    notes = (_note_of_part(part, is_first=not i) for i, part in enumerate(parts) if part not in ("", ".", ".."))
    return next(filter(None, notes), None)


def _note_of_part(part: str, *, is_first: bool) -> str | None:
    if part.startswith("._"):
        return "._*"
    is_meta = is_first and len(part) > 4 and part.startswith("__") and part.endswith("__")
    return part if is_meta or is_system(part) or part == "@LongLink" or _PAX_HEADERS.fullmatch(part) else None


def is_known_note(key: str) -> bool:
    """Whether files with that name describe a data set: README, classes.txt, dataset.json …"""
    return _NOTES.fullmatch(re.split(r"[/\\]", key)[-1]) is not None


def is_image(ending: str) -> bool:
    """Whether an ending is that of an image, perhaps after other dots (``v2.jpg``)."""
    last = ending.rpartition(".")[2]
    return last in FORMATS or (last != "" and last in OTHER_IMAGES)


def has_firm_end(name: str) -> bool:
    """Whether a whole file of that name never ends in zeros."""
    return parse_name(name)[1].rpartition(".")[2] in _FIRM


def is_read(name: str) -> bool:
    """Whether the content of a member of that name can belong to a sample."""
    _, ending, note = parse_name(name)
    return note is None and ending in READ
