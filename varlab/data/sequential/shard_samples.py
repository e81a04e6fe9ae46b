"""The samples of shards that are read as they come. Every fault is named; a broken shard does not end the reading."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

from varlab.config import Config
from varlab.data.archive.link import FileLinks, RecentLinks
from varlab.data.archive.member import Damage
from varlab.data.archive.name import is_read
from varlab.data.archive.note import describe_notes
from varlab.data.archive.sample_group import BadGroup, Sample, SampleGroups
from varlab.data.archive.tape import StreamTape
from varlab.data.sequential.shard_stream import ShardStream
from varlab.types import Fault

__all__ = ["BAD", "IMAGE", "INCOMPLETE", "EncodedSample", "ShardSamples"]

log = logging.getLogger(__name__)

EncodedSample = Config
"""The members of a sample by their endings, as bytes; ``__key__``, ``__url__``, and the following."""

IMAGE = "__image__"
"""The ending of the image."""

BAD = "__bad__"
"""Why there is no sample: a BadGroup."""

INCOMPLETE = "__incomplete__"
"""Marks the last sample of a broken shard, which may lack members."""

_SHOWN = 3  # damages of a shard that a fault describes


class ShardSamples:
    """webdataset's first stage, from the URLs of shards to their samples.

    mean: samples per shard as far as is known. A shard that breaks off loses so many, less those that were read. note:
    receives the faults of shards, and of samples that are given all the same. timeout: see ``Patience``. A shard that could
    not be read is remembered, and not asked for again.
    """

    def __init__(self, *, note: Callable[[Fault], None], mean: int, timeout: float):
        self._note, self._mean, self._timeout = note, mean, timeout
        self._missing = set[str]()
        self._has_logged = False
        self.any_broken = False
        self.empty_in_a_row = 0  # shards without a sample

    def __call__(self, urls: Iterable[str]) -> Iterator[EncodedSample]:
        for url in urls:
            self.empty_in_a_row += 1
            if url in self._missing:
                continue
            try:
                stream = ShardStream(url, timeout=self._timeout)
            except OSError as error:
                self._lose(url, "missing", [error.strerror or str(error)], 0)
                continue
            try:
                yield from self._samples(url, stream)
            finally:
                stream.close()

    def _samples(self, url: str, stream: ShardStream) -> Iterator[EncodedSample]:
        tape = StreamTape(stream, wanted=is_read)
        links = RecentLinks() if stream.path is None or tape.is_packed else FileLinks(stream.path)
        groups, rows = SampleGroups(tape, links), 0
        for group in groups:
            if isinstance(group, BadGroup) and group.again:
                self._note(Fault(group.kind, url, group.key, group.detail, samples=group.samples))
                continue
            self.empty_in_a_row, rows = 0, rows + 1
            sample = {"__key__": group.key, "__url__": url, **_content(group, tape)}
            yield {**sample, INCOMPLETE: True} if _any_cut(groups.damages) else sample
        self._finish(url, stream, tape, groups, rows)
        self._log_notes(url, groups)

    def _finish(self, url: str, stream: ShardStream, tape: StreamTape, groups: SampleGroups, rows: int) -> None:
        """Note what the shard has lost, if anything."""
        error, details = tape.error, [damage.detail for damage in groups.damages]
        try:
            stream.finish()
        except OSError as failed:  # the command's exit code explains why the shard ended
            error = failed
        if error is not None:
            details = [*details[:-1], getattr(error, "strerror", None) or str(error)]
        if isinstance(error, OSError):
            self._lose(url, "cut" if rows else "missing", details, rows)
        elif not stream.bytes:
            self._lose(url, "empty", ["0 bytes"], rows)
        elif _any_cut(groups.damages):
            self._lose(url, "cut", details, rows)
        elif groups.damages:
            lost = sum(map(groups.lost, groups.damages))
            self._lose(url, "damaged", details, rows, lost if rows else None)

    def _lose(self, url: str, kind: str, details: Sequence[str], rows: int, lost: int | None = None) -> None:
        """Note the fault of a shard after so many samples. lost: None for all that it should have besides."""
        self.any_broken = True
        if kind == "missing":
            self._missing.add(url)
        lost = max(1, self._mean - rows) if lost is None else lost
        detail = "; ".join(details[:_SHOWN]) + (" …" if len(details) > _SHOWN else "")
        self._note(Fault(kind, url, "", f"{detail}, after {rows} samples of about {rows + lost}", samples=lost))

    def _log_notes(self, url: str, groups: SampleGroups) -> None:
        if +groups.notes and not self._has_logged:
            self._has_logged = True
            log.info("passed over in %s, and likewise in other shards: %s", url, describe_notes(+groups.notes))


def _content(group: Sample | BadGroup, tape: StreamTape) -> EncodedSample:
    if isinstance(group, BadGroup):
        return {BAD: group}
    members = {ending: tape.read(member.content) for ending, member in group.members.items()}
    return {IMAGE: group.image, **members}


def _any_cut(damages: Sequence[Damage]) -> bool:
    return bool(damages) and damages[-1].kind == "cut"  # nothing follows a cut
