"""Links between the members of a tar."""

from __future__ import annotations

import mmap
from collections import OrderedDict
from pathlib import Path
from posixpath import dirname, join, normpath
from typing import Protocol

from varlab.data.archive.member import HARD_LINK, SYMBOLIC_LINK, Member, Members
from varlab.data.archive.tape import MappedTape

__all__ = ["FileLinks", "Links", "MappedLinks", "RecentLinks", "follow"]

_LINKS = (HARD_LINK, SYMBOLIC_LINK)
_REMEMBERED = 1 << 25  # bytes of contents, the newest
_MOST_LINKS = 40  # from one to the next, as a kernel allows
_COST = 1 << 9  # bytes that a remembered member takes besides


_SPECIAL = {
    b"3": "a device",
    b"4": "a device",
    b"6": "a pipe",
    b"M": "the rest of a file in another volume",
    b"S": "a file with holes (make the tar without --sparse)",
}


class Links(Protocol):
    """Finds the members that links name."""

    def remember(self, member: Member) -> None: ...  # each member, as it is met
    def find(self, name: str) -> Member | None: ...  # a normal path
    @property
    def reach(self) -> str: ...  # where it looks


class MappedLinks:
    """Any member of a file. The first link that is followed walks through all headers once."""

    reach = "in the shard (make the tar with --dereference)"

    def __init__(self, tape: MappedTape):
        self._tape = tape
        self._members: dict[str, Member] | None = None

    def remember(self, member: Member) -> None:
        """Do nothing: the file is here."""

    def find(self, name: str) -> Member | None:
        """The first file of that name, or else a link."""
        if self._members is None:
            self._members = {}
            for member in Members(self._tape, note=lambda damage: None):
                path = normpath(member.name)
                if member.is_plain and self._members.get(path, member).kind in _LINKS:
                    self._members[path] = member
                self._members.setdefault(path, member)
        return self._members.get(name)


class FileLinks:
    """Any member of a file that is also read as a stream."""

    reach = MappedLinks.reach

    def __init__(self, path: Path):
        self._path = path
        self._tape: MappedTape | None = None
        self._links: MappedLinks | None = None

    def remember(self, member: Member) -> None:
        """Do nothing: the file is here."""

    def find(self, name: str) -> Member | None:
        """The first file of that name with its content, or else a link."""
        if self._tape is None or self._links is None:
            with self._path.open("rb") as opened:
                self._tape = MappedTape(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
            self._links = MappedLinks(self._tape)
        found = self._links.find(name)
        if found is None or not found.is_plain:
            return found
        return found._replace(content=found.content._replace(data=self._tape.read(found.content)))


class RecentLinks:
    """The newest members of a stream, which cannot go back."""

    reach = "among the members that were read shortly before; index the shards (varlab index) to follow it"

    def __init__(self) -> None:
        self._members: OrderedDict[str, Member] = OrderedDict()
        self._bytes = 0

    def remember(self, member: Member) -> None:
        """Keep what was read, and drop the oldest that have no room."""
        if len(member.content.data or b"") < member.content.size:
            return
        if self._members.setdefault(normpath(member.name), member) is member:
            self._bytes += member.content.size + _COST
        while self._bytes > _REMEMBERED:
            _, oldest = self._members.popitem(last=False)
            self._bytes -= oldest.content.size + _COST

    def find(self, name: str) -> Member | None:
        """The member of that name."""
        return self._members.get(name)


def follow(links: Links, member: Member) -> Member | str:
    """The file that a link leads to, over other links if need be; or what a member is instead of a file."""
    seen, first = set[str](), member
    while member.kind in _LINKS:
        name = _target(member)
        if name in seen:
            return f"a link to {first.link}, which leads to itself"
        seen.add(name)
        if len(seen) > _MOST_LINKS:
            return f"a link to {first.link}, over more than {_MOST_LINKS} links"
        found = links.find(name)
        if found is None:
            return f"a link to {member.link}, which is not {links.reach}"
        member = found
    return member if member.is_plain else _SPECIAL.get(member.kind, f"of an unknown type {member.kind!r}")


def _target(member: Member) -> str:
    """The path of a link's target. A hard link names a member; a symbolic link, a path from its own folder on."""
    return normpath(member.link if member.kind == HARD_LINK else join(dirname(member.name), member.link))
