"""The samples of a tar: neighbouring members with one key. What is no sample is named, or counted as a note."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from varlab.data.archive.link import Links, follow
from varlab.data.archive.member import HARD_LINK, PLAIN, SYMBOLIC_LINK, Damage, Member, Members
from varlab.data.archive.name import OTHER_IMAGES, PORTABLE, READ, is_image, is_known_note, parse_name
from varlab.data.archive.tape import LARGEST, Tape
from varlab.data.folders.picture_files import START, format_of_start
from varlab.data.format.table import CONDITION, FORMATS

__all__ = ["BadGroup", "Sample", "SampleGroups"]

_END_MARK = "end of archive inside a shard"
_FURTHER = "further image of a sample"
_LONGEST_TEXT = 1 << 24  # bytes of a label or JSON


class Sample(NamedTuple):
    """The members of a sample by their endings. image: the ending of its image. form: Pillow's name of its
    format, as the ending states it, or else the content."""

    key: str
    members: Mapping[str, Member]
    image: str
    form: str


@dataclass(frozen=True)
class BadGroup:
    """Members with one key that give no sample: the kind of fault, and what exactly. samples: how many are lost."""

    key: str
    kind: str
    detail: str
    samples: int = 1
    again: bool = False


class SampleGroups:
    """Iterates over the samples of a tar, and over the groups of members that give none, each named.

    A group without an image is a note (README, classes.txt, __meta__) if no sample with an image has one of its endings, or
    if its name is usual for notes. Otherwise it is a sample that lost its image.

    notes: how often which note was met. damages: bytes that are no members. torn: the keys of samples with other samples
    between their members.
    """

    def __init__(self, tape: Tape, links: Links):
        self._tape, self._links = tape, links
        self.notes: Counter[str] = Counter()
        self.damages: list[Damage] = []
        self.torn = set[str]()
        self._seen: dict[str, frozenset[str] | set[str]] = {}  # the endings of samples with an image, by key
        self._shapes: dict[tuple[str, ...], tuple[frozenset[str], int]] = {}
        self._bare: dict[str, set[str]] = {}  # of groups without one, by key
        self._usual: set[str] = set()  # the endings that samples with an image have
        self._samples = self._end = 0  # how many, and the end of the last one
        self._damaged = 0  # bytes, known at the end

    def __iter__(self) -> Iterator[Sample | BadGroup]:
        members = Members(self._tape, note=self._add_damage)
        place, group, twice = ("", -1), dict[str, Member](), list[str]()
        for member in members:
            key, ending, note = parse_name(member.name)
            if note is not None:
                self.notes[note] += 1
                continue
            if (key, member.part) != place:
                yield from self._close(place[0], group, twice)
                place, group = (key, member.part), {}
                if twice:
                    twice = []
            self._links.remember(member)
            if group.setdefault(ending, member) is not member:
                twice.append(ending)
        yield from self._close(place[0], group, twice)
        self.notes[_END_MARK] += members.part
        yield from self._rest()

    def lost(self, damage: Damage) -> int:
        """The number of samples that lay in a damage, by the mean size of the others. Known at the end."""
        rest = self._end - self._damaged
        return max(damage.least, round(damage.bytes * self._samples / rest) if rest > 0 else 0)

    def _add_damage(self, damage: Damage) -> None:
        self.damages.append(damage)
        self._damaged += damage.bytes

    def _close(self, key: str, group: dict[str, Member], twice: list[str]) -> Collection[Sample | BadGroup]:
        """The sample of a group of neighbours, or what is wrong with it; nothing for a group that may be a note."""
        if not group:
            return ()
        group, trouble = self._followed(group)
        image, form = self._image(group)
        before = self._seen.get(key)
        if image is None and not trouble and before is None and not self._has_lost_image(key, group.keys()):
            self._bare.setdefault(key, set()).update(group)
            return ()
        if before is not None or key in self._bare:
            return self._again(key, group, before)
        self._seen[key], further = self._shape(group, image)
        if trouble or image is None:
            return (BadGroup(key, *trouble) if trouble else _without_image(key, group),)
        self._samples, self._end = self._samples + 1, _end_of(group)
        self.notes[_FURTHER] += further
        repeats = [BadGroup(key, "duplicate", f"two members {ending}", again=True) for ending in twice]
        return (*repeats, Sample(key, group, image, form))

    def _shape(self, group: Mapping[str, Member], image: str | None) -> tuple[frozenset[str], int]:
        """The endings of a group, one object for all groups that have the same; and how many images are not used."""
        endings = tuple(group)
        if endings not in self._shapes or not self._usual.issuperset(group):
            further = sum(is_image(ending) and ending not in (image, CONDITION) for ending in group)
            self._shapes[endings] = frozenset(endings), further
            self._usual.update(group if image is not None else ())
        return self._shapes[endings]

    def _again(self, key: str, group: Mapping[str, Member], before: Collection[str] | None) -> Collection[BadGroup]:
        """What is wrong with members whose key was met before, apart from these. before: the endings that it had."""
        had = self._bare.pop(key, set()) if before is None else before if isinstance(before, set) else set(before)
        repeated = had & group.keys()
        had |= group.keys()  # in place: a key may come back a million times
        self._seen[key] = had
        if repeated:
            return [BadGroup(key, "duplicate", f"{', '.join(sorted(repeated))} occurred before: the first counts")]
        if key in self.torn:
            return ()
        self.torn.add(key)
        return [BadGroup(key, "interleaved", "other samples lie between its members", again=before is not None)]

    def _has_lost_image(self, key: str, endings: Collection[str]) -> bool:
        """Whether members without an image are the rest of a sample, and no note; False where that is not known yet."""
        return any(map(is_image, endings)) or (not self._usual.isdisjoint(endings) and not is_known_note(key))

    def _followed(self, group: dict[str, Member]) -> tuple[dict[str, Member], tuple[str, str] | tuple[()]]:
        """The group with files in the place of links; and (kind, detail) of a member that is read, but is no file."""
        if all(member.kind == PLAIN for member in group.values()):
            return group, _oversize(group)
        files = dict(group)
        for ending, member in group.items():
            found = follow(self._links, member)
            if isinstance(found, Member):
                files[ending] = found
            elif ending and (ending in READ or is_image(ending)):
                kind = "link" if member.kind in (HARD_LINK, SYMBOLIC_LINK) else "special"
                return group, (kind, f"{ending} is {found}")
            else:
                del files[ending]
        return files, _oversize(files)

    def _image(self, group: Mapping[str, Member]) -> tuple[str | None, str]:
        """The ending of the first image, the usual endings first, and its format."""
        for ending in group:
            if ending in FORMATS:
                return ending, FORMATS[ending]
        for ending, member in group.items():
            if ending in OTHER_IMAGES:
                form = PORTABLE.get(ending) or format_of_start(self._tape.head(member.content, START))
                if form is not None:
                    return ending, form
        return None, ""

    def _rest(self) -> Iterator[BadGroup]:
        """The groups without an image that are no notes."""
        for key, endings in self._bare.items():
            if self._has_lost_image(key, endings) or not (self._usual or is_known_note(key)):
                yield _without_image(key, endings)
            else:
                self.notes[re.split(r"[/\\]", key)[-1] + "".join(f".{e}" for e in sorted(endings)[:1] if e)] += 1


def _without_image(key: str, endings: Collection[str]) -> BadGroup:
    """What to say of members without an image."""
    shown = ", ".join(sorted(endings)[:8]) or "a file without an ending"
    lost = sum(is_image(ending) and ending != CONDITION for ending in endings)
    if not lost:
        detail = f"none of {', '.join(FORMATS)}, only {shown}"
    elif READ.issuperset(endings):
        detail = f"only {shown}, in no format that can be opened: convert it to JPEG or PNG"
    else:
        detail = f"only {shown}: a name is cut at its first dot, so rename the files without other dots"
    return BadGroup(key, "no_image", detail, samples=max(1, lost))


def _oversize(group: Mapping[str, Member]) -> tuple[str, str] | tuple[()]:
    """The fault of a member that is larger than what is read."""
    for ending, member in group.items():
        most = _LONGEST_TEXT if ending in ("cls", "json") else LARGEST
        if member.content.size > most and (ending in READ or is_image(ending)):
            return "too_large", f"{ending} has {member.content.size} bytes, over {most}"
    return ()


def _end_of(group: Mapping[str, Member]) -> int:
    return max(member.content.offset + member.content.size for member in group.values())
