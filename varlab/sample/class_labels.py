"""What people ask for, class numbers or names, as indices of a model's classes."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from varlab.config import quoted, shell_word
from varlab.data.folders.class_names import canonical, is_number, named
from varlab.types import VarlabError

__all__ = ["ClassLabels", "Label"]

logger = logging.getLogger(__name__)

Label: TypeAlias = int | str
"""An integer is an index, and a string is a name, also a string of digits."""


@dataclass(frozen=True)
class ClassLabels:
    """The classes of a model, and the key under which people ask for some: ``labels`` takes a list, ``label`` one."""

    classes: Sequence[str]
    key: str = "labels"

    def indices(self, asked: Sequence[Label] | Label) -> list[int]:
        """Return the index of each class; the number of classes is the index of "no class". Raises VarlabError."""
        several = asked if isinstance(asked, Sequence) and not isinstance(asked, str) else [asked]
        names = [canonical(name) for name in self.classes] if several else []
        return [self._index(one, names) for one in several]

    def _index(self, label: object, names: Sequence[str]) -> int:
        if isinstance(label, str):
            return self._named(canonical(label), names)
        if not isinstance(label, int) or isinstance(label, bool):
            raise VarlabError(
                f"Label {label} is neither a number nor a name: for a name write {self._form(str(label))}."
            )
        if not 0 <= label <= len(names):
            raise VarlabError(
                f"Label {label} is outside the {len(names)} classes of this run "
                f"(0 … {len(names) - 1}, or {len(names)} for no class){self._hint(str(label), names)}."
            )
        if label < len(names) and names[label] != str(label) in names:
            logger.info(
                "Label %d is the class at index %d, '%s'. The class named '%d' is at index %d: write %s for it.",
                *(label, label, names[label], label, names.index(str(label)), self._form(str(label))),
            )
        return label

    def _named(self, name: str, names: Sequence[str]) -> int:
        if name not in names:
            raise VarlabError(self._unknown(name, names))
        index = names.index(name)
        if is_number(name) and int(name) != index and 0 <= int(name) < len(names):
            logger.info(
                "Label '%s' is the class named '%s', at index %d. The class at index %s is '%s': write %s for it.",
                *(name, name, index, name, names[int(name)], self._form(int(name))),
            )
        return index

    def _unknown(self, name: str, names: Sequence[str]) -> str:
        """The sentence about a name that no class has."""
        if is_number(name) and 0 <= int(name) < len(names):
            return (
                f"No class of this run is named '{name}', and a quoted number is a name: for the class at index {name} "
                f"write {self._form(int(name))}. {_listed(names)}"
            )
        forms = [self._form(known) for known in _alike(name, names)]
        if self.key == "labels" and "," in name and set(parts := _parts(name)) <= set(names):
            forms = [shell_word(f"labels=[{','.join(map(_word, parts))}]")]
        remedy = f" Write {' or '.join(forms)}." if forms else ""
        return f"No class of this run is named '{name}'.{remedy} {_listed(names)}"

    def _hint(self, name: str, names: Sequence[str]) -> str:
        return f"; the class named '{name}' is {self._form(name)}" if name in names else ""

    def _form(self, label: Label) -> str:
        """How a label is written in a shell."""
        text = str(label) if isinstance(label, int) else _word(label)
        return shell_word(f"{self.key}=[{text}]" if self.key == "labels" else f"{self.key}={text}")


def _listed(names: Sequence[str]) -> str:
    return f"The classes are {named(names)} (all of them: build.classes in the run's run.json)."


def _alike(name: str, names: Sequence[str]) -> list[str]:
    """The classes that are probably meant: one of whose names, separated by commas, is this, or else the nearest ones."""
    folded = {known: [part.casefold() for part in (known, *_parts(known))] for known in names}
    exact = [known for known, parts in folded.items() if name.casefold() in parts]
    return (exact or difflib.get_close_matches(name, names))[:3]


def _parts(name: str) -> list[str]:
    return [part.strip() for part in name.split(",")]


def _word(name: str) -> str:
    """A name as an element of a list; in quotes unless it is a plain word."""
    return name if name.isidentifier() and name.lower() not in ("true", "false", "null", "nan", "inf") else quoted(name)
