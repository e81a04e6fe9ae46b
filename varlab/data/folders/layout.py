"""The layout of a folder of images: its classes and its splits, as their owner means them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from varlab.config import shell_word
from varlab.data.folders.class_names import canonical, in_order, likenesses, named
from varlab.data.folders.splits import SplitNames, split_words
from varlab.data.folders.tree import BESIDE, Tree
from varlab.errors import VarlabError

__all__ = ["Layout", "read_layout"]

_ALL_CLASSES = "set source.split=null if every folder is a class"


@dataclass(frozen=True)
class Layout:
    """The images of a folder.

    classes: the names in label order; none if the images have no labels, or all the same one. splits: the path below the root
    and the label of each image, in the order of labels and paths, by split; one entry, "all", if the folder has no splits.
    notes: sentences about what was passed over or decided.
    """

    classes: tuple[str, ...]
    splits: Mapping[str, Sequence[tuple[str, int | None]]]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Unit:
    """A folder with images of one split ("all" without splits) and one class (None: images without labels)."""

    split: str
    name: str | None
    folder: str
    images: Mapping[str, str]  # path → real path


def read_layout(
    tree: Tree, *, split: Mapping[str, str | None] | None, allow_empty: bool, labelled: bool = True
) -> Layout:
    """Find classes and splits: ``cat/x.jpg``, ``train/cat/x.jpg``, ``cat/train/x.jpg``, or images without folders.

    split: patterns of folder names for ``skip``, ``val`` and ``train``; null takes the usual words. None: no folder is a
    split. allow_empty: whether a folder without images is a class. labelled: whether folders are classes; else all images
    are without labels.

    Raises:
        VarlabError: there is no image; the folders can be understood in two ways; val has a class that train lacks.
    """
    return _LayoutReader(tree, split, allow_empty, labelled).read()


class _LayoutReader:
    def __init__(self, tree: Tree, split: Mapping[str, str | None] | None, allow_empty: bool, labelled: bool):
        self._tree, self._allow_empty, self._are_classes = tree, allow_empty, labelled
        self._names = None if split is None else SplitNames(split)
        self._notes = list[str]()

    def read(self) -> Layout:
        units = self._without_test(self._labelled(self._units()))
        classes = self._classes(units)
        self._check_val(units, classes)
        if len(classes) == 1:
            self._note("a single class, whose images are packed without labels", classes)
            units, classes = [replace(unit, name=None) for unit in units], ()
        self._note_links(units)
        splits = {split: _images(units, split, classes) for split in ("train", "val", "all")}
        notes = [*self._tree.passed.sentences(), *self._notes, *likenesses(classes)]
        return Layout(classes, {split: images for split, images in splits.items() if images}, tuple(notes))

    # -- units -------------------------------------------------------------------------------------------------------------

    def _units(self) -> list[_Unit]:
        folders = self._folders("")
        if self._names is not None:
            names = self._names
            roles = {folder: names.role(folder) for folder in folders}
            if any(roles.values()):
                return self._splits_first(roles, names)
            inner = {folder: {name: names.role(name) for name in self._folders(folder)} for folder in folders}
            if any(any(roles.values()) for roles in inner.values()):
                return self._classes_first(inner)
            self._check_likely_splits(folders)
        units = self._class_units("all", "")
        self._note_wrapper(units)
        return units

    def _splits_first(self, roles: Mapping[str, str | None], names: SplitNames) -> list[_Unit]:
        """``train/cat/x.jpg``."""
        self._tree.passed.add(BESIDE, self._tree.pictures_in(""))
        others = [folder for folder, role in roles.items() if role is None and self._tree.pictures(folder)]
        splits = [folder for folder, role in roles.items() if role]
        if others and not names.patterns.get("train"):
            raise VarlabError(
                f"{self._tree.root} holds the split {named(splits)} beside {named(others)}: leave folders out with "
                f"{shell_word('source.split.skip=' + '|'.join(others[:9]))}, or {_ALL_CLASSES}."
            )
        self._note("no split and passed over", [folder for folder, role in roles.items() if role is None])
        self._note("not in a pattern of split and passed over", [f for f, role in roles.items() if role == "skip"])
        if "train" not in roles.values():
            raise VarlabError(
                f"{self._tree.root} holds the split {named(splits)} but no train: name its folder with "
                f"source.split.train=NAME, set {self._path(splits[0])} to pack that alone, or {_ALL_CLASSES}."
            )
        pairs = [
            (role, self._descended(folder, role, names)) for folder, role in roles.items() if role and role != "skip"
        ]
        return [unit for role, folder in pairs for unit in self._class_units(role, folder)]

    def _classes_first(self, inner: Mapping[str, Mapping[str, str | None]]) -> list[_Unit]:
        """``cat/train/x.jpg``."""
        self._tree.passed.add(BESIDE, self._tree.pictures_in(""))
        units = []
        for folder, roles in inner.items():
            unnamed = [name for name, role in roles.items() if role is None]
            plain = [n for n in unnamed if self._tree.pictures(f"{folder}/{n}")] + list(self._tree.pictures_in(folder))
            if plain:
                splits = [name for roles in inner.values() for name, role in roles.items() if role]
                raise VarlabError(
                    f"Some classes of {self._tree.root} have splits ({named(sorted(set(splits)))}), but "
                    f"{folder} holds {named(plain)}: leave folders out with source.split.skip=NAME, or "
                    "set source.split=null if these folders mean nothing."
                )
            paths = [(role, f"{folder}/{name}") for name, role in roles.items() if role and role != "skip"]
            units += [_Unit(role, canonical(folder), path, self._tree.pictures(path)) for role, path in paths]
        self._check_wrapper(inner)
        return units

    def _class_units(self, split: str, folder: str) -> list[_Unit]:
        """A unit for each folder of a class, and one of the images beside them."""
        beside = self._tree.pictures_in(folder)
        paths = [(name, f"{folder}/{name}" if folder else name) for name in self._folders(folder)]
        units = [_Unit(split, canonical(name), path, self._tree.pictures(path)) for name, path in paths]
        return [*units, _Unit(split, None, folder, beside)]

    def _folders(self, folder: str) -> list[str]:
        """The folders in a folder, without those that the owner leaves out."""
        folders, _ = self._tree.children(folder)
        left_out = [name for name in folders if self._names is not None and self._names.skips(name)]
        self._note("left out by split.skip", left_out)
        return [name for name in folders if name not in left_out]

    def _descended(self, folder: str, role: str, names: SplitNames) -> str:
        """The folder of a split; the one inside it if that alone is in it and has the same name (train/train/cat)."""
        folders = self._folders(folder)
        inner = f"{folder}/{folders[0]}" if len(folders) == 1 and names.role(folders[0]) == role else ""
        if inner and self._folders(inner) and not self._tree.pictures_in(folder):
            return self._descended(inner, role, names)
        return folder

    # -- checks ------------------------------------------------------------------------------------------------------------

    def _check_likely_splits(self, folders: Sequence[str]) -> None:
        """Raise VarlabError if every folder mentions a split, and some train and some another (seg_train, seg_test)."""
        words = {folder: split_words(folder) for folder in folders}
        train = [folder for folder, splits in words.items() if splits == {"train"}]
        rest = [folder for folder, splits in words.items() if splits and "train" not in splits]
        if self._names is not None and train and rest and len(train) + len(rest) == len(folders):
            remedy = " ".join(
                shell_word(f"source.split.{split}={name}") for split, name in (("train", train[0]), ("val", rest[0]))
            )
            raise VarlabError(
                f"The folders {named(folders)} of {self._tree.root} look like splits: set {remedy}, or {_ALL_CLASSES}."
            )

    def _check_wrapper(self, inner: Mapping[str, Mapping[str, str | None]]) -> None:
        """Raise VarlabError if the only class holds the splits of a whole data set (photos/dataset/train/cat/x.jpg)."""
        (folder, roles), *more = inner.items()
        if not more and all(self._folders(f"{folder}/{name}") for name in roles):
            raise VarlabError(f"The only folder of {self._tree.root} holds splits: set {self._path(folder)}.")

    # -- classes and images ------------------------------------------------------------------------------------------------

    def _labelled(self, units: Sequence[_Unit]) -> list[_Unit]:
        """The units of classes; those of images without labels if there are no others, or one folder with fewer images."""
        if not self._are_classes:
            units = [replace(unit, name=None) for unit in units]
        labelled = [unit for unit in units if unit.name is not None]
        unlabelled = [unit for unit in units if unit.name is None]
        stray = {unit.name for unit in labelled if unit.images}
        if len(stray) == 1 and _count(unlabelled) > _count(labelled):
            folders = [unit.folder for unit in labelled if unit.images]
            self._note(f"{_count(labelled):,} images in a folder beside most images are passed over", folders)
        elif stray:
            self._tree.passed.add(BESIDE, (path for unit in unlabelled for path in unit.images))
            return labelled
        elif not _count(unlabelled):
            passed = "; ".join(["", *self._tree.passed.sentences()])
            none = "holds no images" if self._tree.children()[0] else "has no subfolders and no images"
            raise VarlabError(
                f"{self._tree.root} {none}: set path to a folder with a subfolder for each class{passed}."
            )
        if self._are_classes:
            why = "" if stray else "there are no class folders: "
            self._notes.append(f"{why}the images are packed without labels")
        return unlabelled

    def _without_test(self, units: Sequence[_Unit]) -> list[_Unit]:
        """The units of train and val: a test set is for val if nothing else is, and is passed over otherwise."""
        test = [unit for unit in units if unit.split == "test"]
        count = sum(len(unit.images) for unit in test)
        if any(unit.split == "val" and unit.images for unit in units):
            if test:
                called = self._names.called if self._names is not None else {}
                both = "|".join(sorted({*called.get("val", ()), *called.get("test", ())}))
                self._notes.append(f"{count:,} test images are passed over: source.split.val='{both}' takes them, too")
            return [unit for unit in units if unit.split != "test"]
        if count:
            self._notes.append(f"no folder holds val images: {count:,} test images are taken for val")
        elif any(unit.split == "train" for unit in units):
            self._notes.append("no folder holds val images: a share of train is for val (source.val_fraction)")
        return [replace(unit, split="val") if unit.split == "test" else unit for unit in units]

    def _classes(self, units: Iterable[_Unit]) -> tuple[str, ...]:
        trained = [unit for unit in units if unit.split != "val" and unit.name is not None]
        filled = {str(unit.name) for unit in trained if unit.images}
        empty = sorted({str(unit.name) for unit in trained} - filled)
        if empty and not self._allow_empty:
            self._note("no class, without images (source.allow_empty=true makes it one)", empty)
        elif empty:
            self._note("a class without images", empty)
        spellings = Counter(name for name, _ in {(unit.name, unit.folder.rpartition("/")[2]) for unit in trained})
        self._note("one class with folders of two spellings", [str(name) for name, n in spellings.items() if n > 1])
        return in_order(filled | set(empty if self._allow_empty else ()))

    def _check_val(self, units: Iterable[_Unit], classes: Sequence[str]) -> None:
        known = {*classes, None}
        for unit in units:
            if unit.images and unit.name not in known:
                raise VarlabError(
                    f"{self._tree.root}/{unit.folder} is a class {unit.name!r} of val, but train has none: add images of it to "
                    f"train, or leave it out with {shell_word(f'source.split.skip={unit.name}')}."
                )

    def _path(self, folder: str) -> str:
        """How a shell gives a folder inside as ``path``."""
        return shell_word(f"path={self._tree.root}/{folder}")

    # -- what is said ------------------------------------------------------------------------------------------------------

    def _note(self, what: str, names: Sequence[str]) -> None:
        if names and (note := f"{what}: {named(names)}") not in self._notes:
            self._notes.append(note)

    def _note_wrapper(self, units: Sequence[_Unit]) -> None:
        """Say so if the only class has folders of images in it, which may be the classes."""
        filled = [unit for unit in units if unit.images]
        if len(filled) == 1 and filled[0].name is not None and not self._tree.pictures_in(filled[0].folder):
            inside = self._folders(filled[0].folder)
            if len(inside) > 1:
                folder = f"{self._tree.root}/{filled[0].folder}"
                self._notes.append(
                    f"one class {filled[0].name!r}: set path={folder} if {named(inside)} are the classes"
                )

    def _note_links(self, units: Iterable[_Unit]) -> None:
        """Say so if links show the same file in two classes or splits."""
        places = defaultdict[str, list[str]](list)
        for unit in units:
            for path, real in unit.images.items():
                places[real].append(path)
        twice = [paths for paths in places.values() if len(paths) > 1]
        if twice:
            self._notes.append(f"{len(twice):,} files are in two classes or splits by links: {named(twice[0])} …")


def _count(units: Iterable[_Unit]) -> int:
    return sum(len(unit.images) for unit in units)


def _images(units: Iterable[_Unit], split: str, classes: Sequence[str]) -> list[tuple[str, int | None]]:
    """The images of a split in the order of labels and paths."""
    labels: dict[str | None, int | None] = {None: None, **{name: label for label, name in enumerate(classes)}}
    images: dict[int | None, list[str]] = {label: [] for label in labels.values()}
    for unit in units:
        if unit.split == split and unit.images:
            images[labels[unit.name]] += unit.images
    return [
        (path, label) for label, paths in images.items() for path in sorted(paths, key=lambda path: path.split("/"))
    ]
