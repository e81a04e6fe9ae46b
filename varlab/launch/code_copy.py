"""A copy of the code beside the runs of a sweep, so that later edits do not change queued jobs."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

import varlab
from varlab.errors import VarlabError
from varlab.json_file import write_sealed_json
from varlab.run import provenance

__all__ = ["copy_code"]


def copy_code(folder: Path) -> Path:
    """Copy packages and configurations to ``folder/<hash of their content>`` unless it exists; returns that path.

    The copy belongs on PYTHONPATH. Its ``code.json`` holds the provenance of the code. Raises VarlabError where it exists
    and was changed.
    """
    root = Path(varlab.__file__).resolve().parents[1]
    files = _files(root)
    copy = folder / _hash(root, files)
    if copy.is_dir():
        if _hash(copy, _files(copy)) != copy.name:
            raise VarlabError(
                f"{copy} is not the copy of the code that was made there: remove it when no job runs from it."
            )
        return copy
    draft = folder / f".{copy.name}.{os.getpid()}.tmp"
    for file in files:
        (draft / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / file, draft / file)
    write_sealed_json(draft / provenance.CODE, provenance.code())
    try:
        draft.rename(copy)
    except OSError:
        # Another sweep has made the same copy in the meantime.
        shutil.rmtree(draft)
    return copy


def _hash(root: Path, files: Iterable[Path]) -> str:
    content = hashlib.sha256()
    for file in files:
        data = (root / file).read_bytes()
        content.update(f"{file.as_posix()} {len(data)}\n".encode() + data)
    return content.hexdigest()[:12]


def _files(root: Path) -> list[Path]:
    """The files to copy, relative to the folder that holds the packages; in a checkout, conf lies beside them."""
    folders = [root / "varlab", *([] if (root / "varlab" / "conf").is_dir() else [root / "conf"])]
    files = [file for folder in folders for file in folder.rglob("*") if file.is_file()]
    ours = [file.relative_to(root) for file in files if "__pycache__" not in file.parts]
    plugin = Path("hydra_plugins", "varlab_slurm.py")
    return sorted([*ours, plugin] if (root / plugin).is_file() else ours)
