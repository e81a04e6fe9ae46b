"""Names of splits: which folder or file is for training, for validation, or a test set."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Mapping, Sequence

from varlab.errors import VarlabError

__all__ = ["SPLIT_WORDS", "SplitNames", "assign_splits", "matches", "split_of_folder", "split_of_path", "split_words"]

SPLIT_WORDS: Mapping[str, tuple[str, ...]] = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev", "eval"),
    "test": ("test", "testing"),
}
"""What people call a split. They count as whole words, in any letter case: latest, medieval and festival are none."""

_FILLERS = frozenset({"", "data", "folder", "image", "images", "img", "imgs", "set", "sets", "split"})
"""Words beside that of a split that leave its meaning: train_images, test_set, val2017."""

_SPLITS = {word + end: split for split, words in SPLIT_WORDS.items() for word in words for end in ("", "set", " set")}


def split_words(name: str) -> set[str]:
    """The splits that a name mentions. Words end at digits and signs, but not at spaces: "test tubes" is no test set."""
    words = re.split(r"[^\w ]|[\d_]", name.casefold())
    return {_SPLITS[word.strip()] for word in words if word.strip() in _SPLITS}


def split_of_folder(name: str) -> str | None:
    """The split of a folder that is called after it (train, Test_Set, val2017, train_images); None for any other."""
    words = [word for word in re.split(r"[\W\d_]+", name.casefold()) if word not in _FILLERS]
    return _SPLITS.get(words[0]) if len(words) == 1 else None


def split_of_path(path: str) -> str | None:
    """The split that a file's path mentions, in its name or else in the folder nearest to it; None if there is none."""
    for part in reversed(path.split("/")):
        splits = split_words(part)
        if splits and "train" not in splits:
            return "test" if "test" in splits else "val"
        if splits == {"train"}:
            return "train"
    return None


class SplitNames:
    """The names of the folders of splits: usual words, or an owner's patterns for ``skip``, ``val`` and ``train``.

    called: the names that words decided, by split.
    """

    def __init__(self, patterns: Mapping[str, str | None]):
        self.patterns = patterns
        self.called: dict[str, set[str]] = {split: set() for split in SPLIT_WORDS}

    def role(self, name: str) -> str | None:
        """The split that a folder is: train, val, test; skip for one that other patterns replace; None for no split."""
        for split in ("val", "train"):
            pattern = self.patterns.get(split)
            if pattern and matches(name, pattern):
                return split
        word = split_of_folder(name)
        if word is None:
            return None
        self.called[word].add(name)
        return "skip" if self.patterns.get("train" if word == "train" else "val") else word

    def skips(self, name: str) -> bool:
        """Whether the owner leaves a folder out."""
        skip = self.patterns.get("skip")
        return bool(skip) and matches(name, str(skip))


def matches(name: str, pattern: str) -> bool:
    """Whether a name fits one of the patterns, which have | between them."""
    return any(fnmatch.fnmatchcase(name, one.strip()) for one in pattern.split("|"))


def assign_splits(
    files: Sequence[str], patterns: Mapping[str, str | None], *, where: str, key: str = "split"
) -> tuple[dict[str, list[str]], list[str]]:
    """The files of train and of val, and sentences about those that a word decided in an unusual way.

    patterns: of the paths for ``skip``, ``val`` and ``train``. A pattern takes what it matches. Without one for val, a word
    of the path decides; a test set is then for val if nothing else is, and is passed over otherwise. Without one for train,
    all the rest is for train. key: what the sentences call the patterns.

    Raises:
        VarlabError: a file fits no pattern, or none is for train.
    """
    splits: dict[str, list[str]] = {"train": [], "val": [], "test": [], "skip": []}
    for file in files:
        splits[_split(file, patterns, where, key)].append(file)
    notes, test = [], splits["test"]
    if test and splits["val"]:
        notes.append(
            f"passed over: {len(test)} test files ({test[0]} …); {key}.val='*val*|*test*' takes them for val, too"
        )
    elif test:
        splits["val"] = test
        notes.append(f"no file is named for val: {len(test)} test files are taken for it ({test[0]} …)")
    if not splits["train"] and splits["val"]:
        raise VarlabError(
            f"All files of {where} are named for val ({splits['val'][0]} …), and none is left for train: {key}.val=none "
            "takes them for train."
        )
    return {split: splits[split] for split in ("train", "val")}, notes


def _split(file: str, patterns: Mapping[str, str | None], where: str, key: str) -> str:
    for split in ("skip", "val", "train"):
        pattern = patterns.get(split)
        if pattern and matches(file, pattern):
            return split
    word = split_of_path(file)
    if not patterns.get("val") and word in ("val", "test"):
        return word
    if patterns.get("train"):
        raise VarlabError(f"{where}/{file} belongs to no split: set {key}.train or {key}.val to match it.")
    return "train"
