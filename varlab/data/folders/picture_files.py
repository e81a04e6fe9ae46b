"""Which files are pictures, and which belong to an operating system or a program."""

from __future__ import annotations

import re
from pathlib import Path

from PIL import Image

__all__ = ["IMAGE_ENDINGS", "START", "ending_of", "format_of_start", "is_picture", "is_system"]

IMAGE_ENDINGS = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".webp", ".bmp", ".dib", ".tif", ".tiff"}
    | {".ppm", ".pgm", ".pbm", ".pnm", ".gif", ".apng"}
)
"""Endings of pictures that are taken without a look at their content."""

_BY_CONTENT = (
    "JPEG",
    "PNG",
    "WEBP",
    "GIF",
    "TIFF",
    "BMP",
    "AVIF",
    "JPEG2000",
    "HEIF",
    "JXL",
    "MPO",
    "QOI",
    "PSD",
    "DDS",
)
"""Pillow's names of the formats that are recognised without a usual ending, as far as it (or a plugin) opens them."""

START = 32
"""The bytes at the beginning of a file by which its format is known."""

_UNUSUAL = frozenset(
    {"", ".avif", ".avifs", ".heic", ".heif", ".hif", ".jp2", ".j2k", ".jpc", ".jpf", ".jpx", ".jxl"}
    | {".mpo", ".qoi", ".psd", ".dds"}
)
"""Endings, and none at all, of files whose content decides."""

_SYSTEM = frozenset(
    {"__macosx", "lost+found", "@eadir", "@tmp", "@recycle", "@recently-snapshot", "#recycle", "#snapshot"}
    | {"$recycle.bin", "recycler", "system volume information", "thumbs.db", "ehthumbs.db", "desktop.ini", "icon\r"}
    | {"network trash folder", "temporary items", "__pycache__"}
)


def is_system(name: str) -> bool:
    """Whether a file or folder is hidden, or is made by an operating system, a file server or a notebook."""
    return name.startswith(".") or name.casefold() in _SYSTEM


def ending_of(name: str) -> str:
    """The ending in small letters with its dot; empty if there is none that looks like one (a, a.1, a.jpg?w=300)."""
    found = re.search(r"[^/]\.([A-Za-z][A-Za-z0-9]{0,6})$", name)
    return "" if found is None else f".{found[1].lower()}"


def is_picture(path: Path | str) -> bool:
    """Whether a file is a picture by its ending or, with an unusual one or none, by its first bytes."""
    ending = ending_of(str(path))
    return ending in IMAGE_ENDINGS or (ending in _UNUSUAL and _opens(path))


def format_of_start(start: bytes) -> str | None:
    """Pillow's name of the format of a file that begins so; None if that is no picture, or none that it opens."""
    Image.init()
    for name in _BY_CONTENT:
        accept = Image.OPEN[name][1] if name in Image.OPEN else None
        if accept is not None and accept(start) is True:
            return name
    return None


def _opens(path: Path | str) -> bool:
    """Whether Pillow has a format for the first bytes of a file."""
    try:
        with Path(path).open("rb") as file:
            return format_of_start(file.read(START)) is not None
    except OSError:
        return False
