"""The members of shards, as webdataset's pipeline takes them. Every fault is named; a broken shard does not end the reading."""

from __future__ import annotations

import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import TypedDict

from webdataset.tariterators import base_plus_ext

from varlab.data.faults import BadSampleError
from varlab.data.format.table import FORMATS
from varlab.data.sequential.shard_stream import ShardStream
from varlab.types import Fault

__all__ = ["INCOMPLETE", "Member", "ShardMembers"]

INCOMPLETE = "__incomplete__"
"""The ending of an empty member that marks the last sample of a broken shard, which may lack members."""

_READ = {*FORMATS, "cls", "json"}  # the content of other members is skipped; a pickle is never read
_BROKEN = (BadSampleError, tarfile.TarError, zlib.error, lzma.LZMAError, OSError, EOFError, ValueError)


class Member(TypedDict, total=False):
    """A file of a tar in webdataset's layout; empty at the end of each shard."""

    fname: str
    data: bytes
    __url__: str


class ShardMembers:
    """webdataset's stage from the URLs of shards to their members.

    mean: samples per shard as far as is known. A broken shard loses so many, less those that were read. note: receives the
    faults of shards.
    """

    def __init__(self, *, note: Callable[[Fault], None], mean: int):
        self._note, self._mean = note, mean
        self.url = ""  # the shard that is being read
        self.any_broken = False
        self.empty_in_a_row = 0  # shards without a sample

    def __call__(self, urls: Iterable[str]) -> Iterator[Member]:
        for url in urls:
            self.url = url
            yield from self._members(url)
            yield {}

    def _members(self, url: str) -> Iterator[Member]:
        stream: ShardStream | None = None
        key, samples = "", 0
        self.empty_in_a_row += 1
        try:
            stream = ShardStream(url)
            for name, content in _files(stream):
                own, _ = base_plus_ext(name)
                if own is not None:
                    self.empty_in_a_row = 0
                    samples += own != key
                    key = own
                yield {"fname": name, "data": content, "__url__": url}
            stream.finish()
        except _BROKEN as error:
            self._note(self._fault(url, error, stream, samples))
            if key:
                yield {"fname": f"{key}.{INCOMPLETE}", "data": b"", "__url__": url}
        finally:
            if stream is not None:
                stream.close()

    def _fault(self, url: str, error: Exception, stream: ShardStream | None, samples: int) -> Fault:
        self.any_broken = True
        if stream is not None and stream.ended:
            try:
                stream.finish()
            except OSError as failed:  # the command's exit code explains why the shard ended
                error = failed
        lost = max(1, self._mean - samples)
        detail = getattr(error, "strerror", None) or str(error)
        detail += f", after {samples} samples of about {samples + lost}"
        return Fault(_kind(error, stream, samples), url, "", detail, samples=lost)


def _kind(error: Exception, stream: ShardStream | None, samples: int) -> str:
    if isinstance(error, OSError) or stream is None:
        return "cut" if samples else "missing"
    if not stream.bytes:
        return "empty"
    if isinstance(error, BadSampleError):
        return error.kind
    return "cut" if stream.ended else "damaged"


def _files(stream: ShardStream) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the plain files in a tar, compressed or not; the content of unknown endings is empty."""
    with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Header) as tar:  # type: ignore[call-overload]  # it only reads
        while (info := tar.next()) is not None:
            name = info.name
            if info.isreg() and not _is_meta(name):
                known = name.rpartition("/")[2].partition(".")[2].lower() in _READ
                content = tar.extractfile(info) if known else None
                yield name, b"" if content is None else content.read()
            tar.members = []  # otherwise tarfile keeps every header


def _is_meta(name: str) -> bool:
    """Whether a member is webdataset's own metadata."""
    first = name.partition("/")[0]
    return first.startswith("__") and first.endswith("__")


class _Header(tarfile.TarInfo):
    """A header. Anything else in its place, except the archive's end mark, raises; tarfile would silently stop there."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        """Raises BadSampleError: cut, or damaged."""
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as e:
            if len(buf) < tarfile.BLOCKSIZE:
                raise BadSampleError("cut", "it ends without an end of archive") from e
            if any(buf):
                raise BadSampleError("damaged", "no tar header where one should be") from e
            raise
