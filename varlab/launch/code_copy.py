"""The code as it was when a sweep was submitted: a copy beside its runs, so that an edit does not change a queued job."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import varlab
from varlab.run import provenance

__all__ = ["snapshot"]


def snapshot(folder: Path) -> Path:
    """The copy in ``folder/<hash of its content>``, made unless it is there: what PYTHONPATH is to begin with.

    In it are the packages, the configurations that belong to them, and ``code.json``: where they came from.
    """
    root = Path(varlab.__file__).resolve().parents[1]
    files = sorted(_files(root))
    digest = hashlib.sha256()
    for file in files:
        content = (root / file).read_bytes()
        digest.update(f"{file.as_posix()} {len(content)}\n".encode() + content)
    copy = folder / digest.hexdigest()[:12]
    if copy.is_dir():
        return copy
    draft = folder / f".{copy.name}.{os.getpid()}.tmp"
    for file in files:
        (draft / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / file, draft / file)
    (draft / provenance.CODE).write_text(json.dumps(provenance.code(), indent=1) + "\n", encoding="utf-8")
    try:
        draft.rename(copy)
    except OSError:  # another sweep has just made it
        shutil.rmtree(draft)
    return copy


def _files(root: Path) -> Iterator[Path]:
    """Relative to the folder that holds the packages; beside them lies conf in a checkout."""
    packages = [root / "varlab", root / "hydra_plugins" / "varlab_slurm.py"]
    if not (root / "varlab" / "conf").is_dir():
        packages.append(root / "conf")
    for package in packages:
        for file in [package] if package.is_file() else package.rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                yield file.relative_to(root)
