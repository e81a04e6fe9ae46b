"""The members of shards as they come, for webdataset's pipeline: nothing is passed over in silence, nothing ends it."""

from __future__ import annotations

import lzma
import tarfile
import zlib
from collections.abc import Iterable, Iterator

from webdataset.tariterators import base_plus_ext

from varlab.config import Config
from varlab.data.faults import BadSampleError
from varlab.data.format.table import FORMATS
from varlab.data.unindexed.shard_stream import ShardStream
from varlab.types import Fault

__all__ = ["TORN", "Untar"]

Member = Config

TORN = "__torn__"
"""The ending of a member that is none: it tells that its sample lies where a shard breaks off."""

_READ = {*FORMATS, "cls", "json"}  # other members' content is passed over: least of all is a pickle read
_BROKEN = (BadSampleError, tarfile.TarError, zlib.error, lzma.LZMAError, OSError, EOFError, ValueError)


class Untar:
    """webdataset's stage from shards ({"url"}) to members ({"fname", "data", "__url__"}), {} at the end of each shard.

    faults: those of shards are appended to it. mean: samples that a shard holds as far as is known; so many (less those
    that came) are lost with one that breaks off.
    """

    def __init__(self, *, faults: list[Fault], mean: int):
        self._faults, self._mean = faults, mean
        self.url = ""  # of the shard that is being read
        self.broken = False  # whether a shard was missing, or broke off

    def __call__(self, shards: Iterable[dict[str, str]]) -> Iterator[Member]:
        for shard in shards:
            self.url = shard["url"]
            yield from self._members(self.url)
            yield {}

    def _members(self, url: str) -> Iterator[Member]:
        stream: ShardStream | None = None
        key, samples = "", 0
        try:
            stream = ShardStream(url)
            for name, content in _files(stream):
                own, _ = base_plus_ext(name)
                if own is not None:
                    samples += own != key
                    key = own
                yield {"fname": name, "data": content, "__url__": url}
            stream.finish()
        except _BROKEN as error:
            self._note(url, error, stream, samples)
            if key:
                yield {"fname": f"{key}.{TORN}", "data": b"", "__url__": url}
        finally:
            if stream is not None:
                stream.close()

    def _note(self, url: str, error: Exception, stream: ShardStream | None, samples: int) -> None:
        self.broken = True
        if stream is not None and stream.ended:
            try:
                stream.finish()
            except OSError as failed:  # the command's end explains the shard's
                error = failed
        lost = max(1, self._mean - samples)
        detail = getattr(error, "strerror", None) or str(error)
        detail += f", after {samples} samples of about {samples + lost}"
        self._faults.append(Fault(_kind(error, stream, samples), url, "", detail, samples=lost))


def _kind(error: Exception, stream: ShardStream | None, samples: int) -> str:
    if isinstance(error, OSError) or stream is None:
        return "cut" if samples else "missing"
    if not stream.bytes:
        return "empty"
    if isinstance(error, BadSampleError):
        return error.kind
    return "cut" if stream.ended else "damaged"


def _files(stream: ShardStream) -> Iterator[tuple[str, bytes]]:
    """(name, content) of the plain files in a tar, packed or not; content that nobody wants is empty."""
    with tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Header) as tar:  # type: ignore[call-overload]  # it only reads
        while (info := tar.next()) is not None:
            name = info.name
            if info.isreg() and not _is_meta(name):
                wanted = name.rpartition("/")[2].partition(".")[2].lower() in _READ
                content = tar.extractfile(info) if wanted else None
                yield name, b"" if content is None else content.read()
            tar.members = []  # else it remembers all


def _is_meta(name: str) -> bool:
    """webdataset's own notes in a shard."""
    first = name.partition("/")[0]
    return first.startswith("__") and first.endswith("__")


class _Header(tarfile.TarInfo):
    """A header. Wherever something else stands in its place, but for the archive's end mark, is an error; tarfile takes all
    of that for the end, without a word."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        """BadSampleError: cut, or damaged."""
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as e:
            if len(buf) < tarfile.BLOCKSIZE:
                raise BadSampleError("cut", "it ends without an end of archive") from e
            if any(buf):
                raise BadSampleError("damaged", "no tar header where one should be") from e
            raise
