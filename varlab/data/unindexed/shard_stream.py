"""Shards read as they come, from the first byte to the last: files, files behind HTTP(S), what a command prints."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

from braceexpand import braceexpand
from webdataset.gopen import gopen, gopen_schemes

from varlab.errors import VarlabError

__all__ = ["ShardStream", "shard_urls"]

ATTEMPTS = 3  # at the same byte of a file behind HTTP, one and two seconds apart
TIMEOUT = 60.0  # seconds that a server may be silent
_PASSING = (408, 425, 429)  # refusals that are worth another attempt, as all of 500 and above
_CHUNK = 1 << 16


def shard_urls(spec: str | Sequence[str], name: str) -> tuple[str, ...]:
    """Every shard that a setting stands for: one or more paths, URLs or ``pipe:`` commands, braces in them expanded.

    Raises:
        VarlabError: none, braces that don't match, or an address that cannot be opened here.
    """
    specs = [spec] if isinstance(spec, str) else [*spec]
    try:
        urls = tuple(url for one in specs for url in (braceexpand(one) if "{" in one else (one,)))
    except ValueError as e:
        raise VarlabError(f"{name} cannot be expanded ({e}): write shards as x-{{000..127}}.tar.") from e
    if not all(urls) or not urls:
        raise VarlabError(f"{name} names no shards: give paths, http(s)://… or pipe:COMMAND.")
    for url in urls:
        scheme = urlparse(url).scheme
        if scheme not in ("", "file", *gopen_schemes):
            raise VarlabError(f"{name} has {url}, which cannot be opened: give a path, http(s)://… or pipe:COMMAND.")
    return urls


class ShardStream:
    """One shard. bytes: so many came until now. ended: there are no more.

    Raises (also on reading):
        OSError: it is not there, or its command failed.
    """

    def __init__(self, url: str):
        self.bytes, self.ended = 0, False
        scheme = urlparse(url).scheme
        try:
            if scheme in ("http", "https"):
                self._stream: Any = _HttpFile(url)
            else:
                self._stream = gopen(url if scheme else str(Path(url).expanduser()))
        except (ValueError, ImportError) as e:
            raise OSError(str(e)) from e

    def read(self, size: int) -> bytes:
        """So many bytes, or fewer at the end."""
        try:
            data: bytes = self._stream.read(size)
        except OSError as e:
            raise self._failed(e) from e
        self.bytes += len(data)
        self.ended = self.ended or not data
        return data

    def finish(self) -> None:
        """Read what is left, so that a command can end as it should, and close.

        Raises:
            OSError: its command failed.
        """
        while not self.ended:
            self.read(_CHUNK)
        try:
            self._stream.close()
        except OSError as e:
            raise self._failed(e) from e

    def close(self) -> None:
        """Leave it, wherever it stands: a command is stopped, and how it ended is no matter."""
        process = getattr(self._stream, "proc", None)
        if process is not None:
            process.kill()  # it may be waiting for something and never notice that nobody reads
        with suppress(OSError):
            self._stream.close()

    def _failed(self, error: OSError) -> OSError:
        """webdataset's error, told in few words."""
        code = getattr(getattr(self._stream, "proc", None), "returncode", None)
        return OSError(f"its command ended with exit code {code}") if code else error


class _HttpFile:
    """A file behind HTTP(S). Where the connection breaks, it is taken up at the same byte."""

    def __init__(self, url: str):
        self._url, self._at, self._end = url, 0, 0
        self._answer: HTTPResponse | None = None

    def read(self, size: int) -> bytes:
        attempt = 1
        while True:
            try:
                return self._read(size)
            except (OSError, HTTPException, ValueError) as e:  # ValueError: an address that is none
                self.close()
                if attempt == ATTEMPTS or isinstance(e, ValueError) or _is_final(e):
                    raise OSError(_told(e)) from e
            time.sleep(attempt)
            attempt += 1

    def close(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None

    def _read(self, size: int) -> bytes:
        if self._answer is None:
            self._answer = self._opened()
        data = self._answer.read(size)
        self._at += len(data)
        if not data and self._at < self._end:
            raise ConnectionError(f"the connection ended at byte {self._at} of {self._end}")
        return data

    def _opened(self) -> HTTPResponse:
        """The answer, standing at the byte that comes next."""
        headers = {"User-Agent": "varlab"} | ({"Range": f"bytes={self._at}-"} if self._at else {})
        answer: HTTPResponse = urlopen(Request(self._url, headers=headers), timeout=TIMEOUT)
        at = self._at if answer.status == 206 else 0  # not every server knows ranges
        self._end = at + int(answer.headers.get("Content-Length") or 0)
        while at < self._at:
            skipped = answer.read(min(_CHUNK, self._at - at))
            if not skipped:
                raise ConnectionError(f"the connection ended at byte {at} of {self._end}")
            at += len(skipped)
        return answer


def _is_final(error: Exception) -> bool:
    return isinstance(error, HTTPError) and error.code < 500 and error.code not in _PASSING


def _told(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"HTTP {error.code} {error.reason}"
    return str(getattr(error, "reason", None) or error or type(error).__name__)
