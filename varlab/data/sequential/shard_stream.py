"""The bytes of a shard from first to last: a file, a file behind HTTP(S), or the output of a command."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import partial
from http.client import HTTPException, HTTPResponse
from math import prod
from pathlib import Path
from typing import Any, Protocol
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

from braceexpand import braceexpand
from webdataset.gopen import gopen, gopen_schemes

from varlab.data.patience import ATTEMPTS, CHUNK, Patience, within
from varlab.errors import VarlabError
from varlab.files import require_plain

__all__ = ["ShardStream", "refuse_commands", "shard_urls"]

_MOST = 1_000_000  # shards
_WEB = ("http", "https")
_TEMPORARY = (408, 425, 429)  # HTTP errors below 500 that are worth another attempt
_DEEPEST = 20  # braces in braces
_BRACES = re.compile(r"\\.|\{(?P<first>-?\d+)\.\.(?P<last>-?\d+)(\.\.-?\d+)?\}|[{},]", re.DOTALL)
_UNSAFE = re.compile(r"""['"`$\\;|&<>\s]""")  # signs of a shell, by which webdataset runs the programs of some schemes


def shard_urls(spec: str | Sequence[str], name: str) -> tuple[str, ...]:
    """Every shard of a setting: one or more paths, URLs or ``pipe:`` commands, with braces expanded.

    Raises:
        VarlabError: there are none, braces do not match, or an address cannot be opened here.
    """
    specs = [spec] if isinstance(spec, str) else [*spec]
    try:
        many = sum(map(_count, specs)) > _MOST
        urls = () if many else tuple(url for one in specs for url in (braceexpand(one) if "{" in one else (one,)))
    except ValueError as e:
        raise VarlabError(f"{name} cannot be expanded ({e}): write shards as x-{{000..127}}.tar.") from e
    if many:
        raise VarlabError(f"{name} names more than {_MOST} shards: correct the numbers in its braces.")
    if not all(urls) or not urls:
        raise VarlabError(f"{name} names no shards: give paths, http(s)://… or pipe:COMMAND.")
    for url in urls:
        scheme = urlparse(url).scheme
        if scheme not in ("", "file", *gopen_schemes):
            raise VarlabError(f"{name} has {url}, which cannot be opened: give a path, http(s)://… or pipe:COMMAND.")
        if scheme not in ("", "file", "pipe", *_WEB) and _UNSAFE.search(url):
            raise VarlabError(
                f"{name} has {url}, whose quotes, spaces or other signs a shell would read: rename the shard."
            )
    return urls


def refuse_commands(config: Mapping[str, Any]) -> None:
    """Raise VarlabError if a recorded configuration of data would run a command: only a command line may ask for one."""
    for split in ("train", "val"):
        spec = config.get(split)
        for url in shard_urls(spec, f"data.{split}") if spec and isinstance(spec, str | Sequence) else ():
            if urlparse(url).scheme == "pipe":
                raise VarlabError(
                    f"A record asks to run `{url[:200]}`: give data.{split} on the command line if you trust it."
                )


def _count(spec: str) -> int:
    """How many shards a pattern names, before they take memory. Raises ValueError if its braces are too deep."""
    levels = [(0, 1)]  # of each open brace: the sum of the alternatives before, and the product of the present one
    for token in _BRACES.finditer(spec):
        done, present = levels[-1]
        if token["first"] is not None:
            levels[-1] = done, present * (abs(int(token["last"]) - int(token["first"])) + 1)
        elif token[0] == "{":
            levels.append((0, 1))
        elif token[0] == "," and len(levels) > 1:
            levels[-1] = done + present, 1
        elif token[0] == "}" and len(levels) > 1:
            levels.pop()
            outer, product = levels[-1]
            levels[-1] = outer, product * (done + present)
        if len(levels) > _DEEPEST:
            raise ValueError("its braces are too deep")
    return prod(done + present for done, present in levels)


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...
    def close(self) -> None: ...


class ShardStream:
    """One shard. bytes: how many were read so far. ended: whether the last one was. path: of a file on this machine.

    Raises (also on reading):
        OSError: the shard cannot be opened, or its command failed.
    """

    def __init__(self, url: str, *, timeout: float):
        self.bytes, self.ended = 0, False
        scheme = urlparse(url).scheme
        path = Path(urlparse(url).path if scheme == "file" else url).expanduser()
        self.path = path if scheme in ("", "file") and path.is_file() else None
        try:
            if scheme in _WEB:
                self._stream: _Readable = _HttpFile(url, Patience(timeout))
            else:
                if scheme in ("", "file"):
                    require_plain(path)
                self._stream = gopen(url if scheme else str(Path(url).expanduser()))
        except (ValueError, ImportError) as e:
            raise OSError(str(e)) from e

    def read(self, size: int) -> bytes:
        """That many bytes, or fewer at the end."""
        try:
            data = self._stream.read(size)
        except OSError as e:
            self.ended = True  # nobody asks again
            raise self._short(e) from e
        self.bytes += len(data)
        self.ended = self.ended or not data
        return data

    def finish(self) -> None:
        """Read the rest, so that a command can end normally, and close.

        Raises:
            OSError: the command failed.
        """
        while not self.ended:
            self.read(CHUNK)
        try:
            self._stream.close()
        except OSError as e:
            raise self._short(e) from e

    def close(self) -> None:
        """Stop reading here: kill a command, and ignore how it ended."""
        process = getattr(self._stream, "proc", None)
        if process is not None:
            process.kill()  # it may wait for input forever and never notice that its reader is gone
        with suppress(OSError):
            self._stream.close()

    def _short(self, error: OSError) -> OSError:
        """The exit code of the command, in place of webdataset's long message."""
        code = getattr(getattr(self._stream, "proc", None), "returncode", None)
        return OSError(f"its command ended with exit code {code}") if code else error


class _HttpFile:
    """A file behind HTTP(S). A broken connection is opened again at the same byte."""

    def __init__(self, url: str, patience: Patience):
        self._url, self._at, self._end, self._patience = url, 0, 0, patience
        self._response: HTTPResponse | None = None

    def read(self, size: int) -> bytes:
        attempt = 1
        while True:
            try:
                # the call changes nothing here: if it is given up, it may still come back
                response, end, data = within(self._patience.wait, partial(self._read, self._response, self._at, size))
                self._response, self._end, self._at = response, end, self._at + len(data)
                if data or self._at >= end:
                    return data
                raise ConnectionError(f"the connection ended at byte {self._at} of {end}")
            except (OSError, HTTPException, ValueError) as e:  # ValueError: not a valid address
                if not isinstance(e, TimeoutError):  # a thread that reads would hold the response's lock
                    self.close()
                self._response = None
                if attempt == ATTEMPTS or isinstance(e, ValueError) or _is_permanent(e):
                    raise OSError(_reason(e)) from e
            self._patience.pause(attempt)
            attempt += 1

    def close(self) -> None:
        if self._response is not None:
            self._response.close()
            self._response = None

    def _read(self, response: HTTPResponse | None, at: int, size: int) -> tuple[HTTPResponse, int, bytes]:
        """Read from byte ``at`` on: the response, the offset of its end, and the bytes."""
        end = self._end
        if response is None:
            response, end = self._open(at)
        return response, end, response.read(min(size, CHUNK))

    def _open(self, first: int) -> tuple[HTTPResponse, int]:
        """A response from a byte on, and the offset of its end."""
        headers = {"User-Agent": "varlab"} | ({"Range": f"bytes={first}-"} if first else {})
        response: HTTPResponse = urlopen(Request(self._url, headers=headers), timeout=self._patience.wait)
        at = first if response.status == 206 else 0  # a server without ranges starts at the first byte
        end = at + int(response.headers.get("Content-Length") or 0)
        while at < first:
            skipped = response.read(min(CHUNK, first - at))
            if not skipped:
                raise ConnectionError(f"the connection ended at byte {at} of {end}")
            at += len(skipped)
        return response, end


def _is_permanent(error: Exception) -> bool:
    return isinstance(error, HTTPError) and error.code < 500 and error.code not in _TEMPORARY


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        return f"HTTP {error.code} {error.reason}"
    return str(getattr(error, "reason", None) or error or type(error).__name__)
