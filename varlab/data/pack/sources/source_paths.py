"""The files and folders that sources are read from, checked without torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from varlab.errors import VarlabError

__all__ = ["image_folder", "parquet_paths", "require_other_folder", "shard_folder"]


def image_folder(path: str) -> Path:
    """The folder of a source of image files. VarlabError if there is none."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        what = f"{folder} is a file, not a folder" if folder.exists() else f"There is no image folder {folder}"
        raise VarlabError(f"{what}: name a folder of pictures, or of one sub-folder of pictures for each class.")
    return folder


def shard_folder(path: str) -> Path:
    """The folder of a source of tars. VarlabError if there is none."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        raise VarlabError(f"There is no folder of shards {folder}: set path to the one that contains them.")
    return folder


def parquet_paths(paths: str | Sequence[str]) -> list[Path]:
    """The files or folders of a source of Parquet. VarlabError if one does not exist."""
    given = [Path(path).expanduser() for path in ([paths] if isinstance(paths, str) else paths)]
    for path in given:
        if not path.exists():
            raise VarlabError(f"There is no Parquet file or folder {path}: set path to one.")
    return given


def require_other_folder(path: object, out: Path) -> None:
    """Raise VarlabError if new shards could replace the source's own. path: of the source, if it has one."""
    if isinstance(path, str) and Path(path).expanduser().resolve() == out.resolve():
        raise VarlabError(f"{out} is where the source lies: pack into another folder with out=.")
