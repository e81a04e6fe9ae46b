"""Walk the folders of a data set: every real file once, whatever links lead to it, and a count of what is passed over."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

from varlab.data.folders.class_names import printable
from varlab.data.folders.picture_files import ending_of, is_picture, is_system

__all__ = ["PassedOver", "Tree"]

Kind = tuple[str, str]
"""The noun of a kind, and what follows it."""

HIDDEN: Kind = ("hidden or system name", "")
LOOPS: Kind = ("link", " to a folder above it")
AGAIN: Kind = ("link", " to what was there already")
BROKEN: Kind = ("broken link", "")
UNREADABLE: Kind = ("unreadable folder", "")
SPECIAL: Kind = ("device", ", pipe or socket")
ENDINGS: Kind = ("file", " of other endings")
BESIDE: Kind = ("image", " beside the class folders")

_OWN = frozenset({".lock", ".packing"})  # of varlab pack, in the folder of its shards
_EXAMPLES = 9  # that a sentence names, of each kind


class PassedOver:
    """What a walk did not take, by kind. A name that is passed over twice counts once."""

    def __init__(self) -> None:
        self._names: dict[Kind, set[str]] = defaultdict(set)

    def add(self, kind: Kind, names: Iterable[str]) -> None:
        """Note names of a kind."""
        self._names[kind].update(names)

    def sentences(self) -> list[str]:
        """One sentence about all that was passed over; none if that is nothing."""
        kinds = [
            f"{_counted(len(names), kind)} ({_shown(names, kind)})" for kind, names in self._names.items() if names
        ]
        return [f"passed over: {'; '.join(kinds)}"] if kinds else []


def _counted(n: int, kind: Kind) -> str:
    noun, rest = kind
    return f"{n:,} {noun}{'s' * (n != 1)}{rest}"


def _shown(names: set[str], kind: Kind) -> str:
    """Some of the names; files of other endings are counted by ending, hidden ones by name."""
    if kind == ENDINGS:
        shown = _tallied(ending_of(name) or "none" for name in names)
    elif kind == HIDDEN:
        base_names = (name.rpartition("/")[2] for name in names)
        shown = _tallied("._*" if name.startswith("._") else name for name in base_names)
    else:
        shown = [printable(name) for name in sorted(names)]
    return ", ".join(shown[:_EXAMPLES]) + (", …" if len(shown) > _EXAMPLES else "")


def _tallied(keys: Iterable[str]) -> list[str]:
    """Each key with its number, the most frequent first."""
    return [f"{printable(key)} {n}" for key, n in sorted(Counter(keys).items(), key=lambda item: (-item[1], item[0]))]


class Tree:
    """A folder of a data set. Paths below it are strings with "/" between their parts, as the system gives them.

    passed: what the walks did not take.
    """

    def __init__(self, root: Path | str):
        self.root, self._real = str(root), os.path.realpath(root)
        self.passed = PassedOver()

    def children(self, folder: str = "") -> tuple[list[str], list[str]]:
        """The names of the folders and of the files in a folder, sorted. A link counts as what it leads to."""
        folders, files = list[str](), list[str]()
        for entry in self.entries(folder):
            path = _joined(folder, entry.name)
            if entry.is_symlink() and (kind := self._useless(path)):
                self.passed.add(kind, [path])
            elif entry.is_dir():
                folders.append(entry.name)
            elif entry.is_file():
                files.append(entry.name)
        return sorted(folders), sorted(files)

    def files(self, folder: str = "") -> dict[str, str]:
        """Every real file below a folder once: its path, in the order of the parts of paths, and its real path.

        A file that lies there is named by its own path, whatever links lead to it.
        """
        walk = _Walk(self, folder)
        walk.follow_links()
        return dict(sorted(((path, real) for real, path in walk.found.items()), key=lambda file: _parts(file[0])))

    def pictures(self, folder: str = "") -> dict[str, str]:
        """The pictures among ``files``; the others are counted."""
        files = self.files(folder)
        pictures = {path: real for path, real in files.items() if is_picture(real)}
        self.passed.add(ENDINGS, (path for path in files if path not in pictures))
        return pictures

    def pictures_in(self, folder: str) -> dict[str, str]:
        """The pictures that lie in a folder itself, each real file once: path → real path."""
        here, found = self.real(folder), dict[str, str]()
        paths = [_joined(folder, name) for name in self.children(folder)[1]]
        reals = {path: self.real(path) for path in paths}
        for path in sorted(paths, key=lambda path: reals[path] != _joined(here, path.rpartition("/")[2])):  # links last
            if found.setdefault(reals[path], path) != path:
                self.passed.add(AGAIN, [path])
        return {path: real for real, path in found.items() if is_picture(real)}

    def entries(self, folder: str) -> list[os.DirEntry[str]]:
        """What a folder holds, without hidden and system names, which are counted; nothing if it cannot be read."""
        try:
            with os.scandir(_joined(self.root, folder)) as scan:
                entries = list(scan)
        except OSError as e:
            self.passed.add(UNREADABLE, [f"{folder or self.root}: {e.strerror}"])
            return []
        self.passed.add(HIDDEN, (_joined(folder, e.name) for e in entries if is_system(e.name) and e.name not in _OWN))
        return [entry for entry in entries if not is_system(entry.name)]

    def real(self, path: str) -> str:
        """The real path of a path below the root."""
        return os.path.realpath(_joined(self.root, path))

    def is_loop(self, real: str, folder: str) -> bool:
        """Whether a real path is ``folder``, the root, or above one of them."""
        above = f"{real.rstrip('/')}/"
        return f"{self._real}/".startswith(above) or f"{self.real(folder)}/".startswith(above)

    def _useless(self, link: str) -> Kind | None:
        """The kind of a link that leads to nothing, or upwards."""
        real = Path(self.real(link))
        if not real.exists():
            return BROKEN
        return LOOPS if real.is_dir() and self.is_loop(str(real), link.rpartition("/")[0]) else None


class _Walk:
    """One walk: the real folders that were seen, the path of each real file that was found, and the links to follow."""

    def __init__(self, tree: Tree, folder: str):
        self._tree, self._folder = tree, folder
        self._seen, self._links = set[str](), list[str]()
        self.found: dict[str, str] = {}
        self._collect(folder, tree.real(folder))

    def follow_links(self) -> None:
        """Follow links in the order of their paths, and the links behind them."""
        while self._links:
            links, self._links = sorted(self._links, key=_parts), []
            for path in links:
                self._follow(path, self._tree.real(path))

    def _follow(self, path: str, real: str) -> None:
        passed, target = self._tree.passed, Path(real)
        if target.is_dir() and self._tree.is_loop(real, self._folder):
            passed.add(LOOPS, [path])
        elif real in self._seen or real in self.found:
            passed.add(AGAIN, [path])
        elif target.is_dir():
            self._collect(path, real)
        elif target.is_file():
            self.found[real] = path
        else:
            passed.add(SPECIAL if target.exists() else BROKEN, [path])

    def _collect(self, folder: str, real: str) -> None:
        """Add the plain files of a folder and of the plain folders in it, and list the links there."""
        pending = [(folder, real)]
        while pending:
            folder, real = pending.pop()
            if real in self._seen:
                continue
            self._seen.add(real)
            for entry in self._tree.entries(folder):
                path, there = _joined(folder, entry.name), f"{real}/{entry.name}"
                if entry.is_symlink():
                    self._links.append(path)
                elif entry.is_dir(follow_symlinks=False):
                    pending.append((path, there))
                elif not entry.is_file(follow_symlinks=False):
                    self._tree.passed.add(SPECIAL, [path])
                elif self.found.setdefault(there, path) != path:
                    self._tree.passed.add(AGAIN, [path])


def _joined(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder and name else folder or name


def _parts(path: str) -> list[str]:
    return path.split("/")
