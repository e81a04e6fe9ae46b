"""The run directories in a tree of folders."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from varlab.run.record import FILE

__all__ = ["run_folders"]

_INSIDE_A_RUN = frozenset({"tb", "scores", "pictures"})  # folders of a run, never searched for further runs


def run_folders(
    root: Path,
    refused: Callable[[OSError], None] | None = None,
    *,
    holding: str = FILE,
    depth: int | None = None,
) -> Iterator[Path]:
    """The run directories at or below a folder. refused: is called with the error of each folder that cannot be read.

    holding: the name by which a folder is chosen, if it is not the record of a run. depth: how many folders below the root
    are searched (None: all).
    """
    top = len(root.parts)
    for folder, children, files in os.walk(root, onerror=refused):
        if holding in files or holding in children:
            yield Path(folder)
        if depth is not None and len(Path(folder).parts) - top >= depth:
            children.clear()
        kept = (name for name in children if not name.startswith(".") and name not in _INSIDE_A_RUN)
        children[:] = sorted(kept, key=_by_number)


def _by_number(name: str) -> list[str | float]:
    """A sorting key by which ``size=32`` comes before ``size=128``."""
    return [float(part) if i % 2 else part for i, part in enumerate(re.split(r"([0-9]+(?:\.[0-9]+)?)", name))]
