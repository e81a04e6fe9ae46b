"""Servers that stall, drip, lie, redirect or reset: a named fault in time, and nothing short or unverified in the cache."""

from __future__ import annotations

import functools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from varlab.data.format.index import read_index
from varlab.data.sequential.shard_samples import ShardSamples
from varlab.data.shard_module import ShardDataModule
from varlab.data.storage.local_folder import StoredFile
from varlab.data.storage.remote_folder import storage_at
from varlab.types import Fault, VarlabError

Make = Callable[..., ShardDataModule]

TIMEOUT = 1.2  # seconds, data.timeout


class Hostile(SimpleHTTPRequestHandler):
    """Serves a folder honestly, but shards in its own way."""

    way = "honest"
    asked: list[str]

    def log_message(self, *arguments: Any) -> None: ...

    def do_GET(self) -> None:
        if not self.path.endswith(".tar"):
            return super().do_GET()
        self.asked.append(self.path)
        return getattr(self, self.way)()

    def honest(self) -> None:
        super().do_GET()

    def head(self, length: int | None, code: int = 200, **headers: str) -> None:
        self.send_response(code)
        for name, value in ({"Content-Length": str(length)} if length is not None else {} | headers).items():
            self.send_header(name, value)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.flush()

    def content(self) -> bytes:
        return Path(self.translate_path(self.path)).read_bytes()

    def error(self) -> None:
        self.head(0, 500)

    def stall(self) -> None:
        self.head(len(self.content()))
        time.sleep(4 * TIMEOUT)

    def silent(self) -> None:
        time.sleep(4 * TIMEOUT)

    def drip(self) -> None:
        content = self.content()
        self.head(len(content))
        for at in range(200):
            self.wfile.write(content[at : at + 1])
            self.wfile.flush()
            time.sleep(0.05)

    def drip_head(self) -> None:
        for at in range(200):
            self.wfile.write(b"HTTP/1.0 200 OK\r\nX: "[at : at + 1] or b"x")
            time.sleep(0.05)

    def short(self) -> None:
        content = self.content()[:5000]
        self.head(len(content))
        self.wfile.write(content)

    def cut(self) -> None:
        content = self.content()
        self.head(len(content))
        self.wfile.write(content[:5000])

    def long(self) -> None:
        content = self.content() + bytes(1 << 20)
        self.head(len(content))
        self.wfile.write(content)

    def changed(self) -> None:
        content = bytearray(self.content())
        content[600] ^= 1
        self.head(len(content))
        self.wfile.write(content)

    def reset(self) -> None:
        self.head(len(self.content()))
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        self.connection.close()

    def loop(self) -> None:
        self.head(0, 302, Location=self.path)

    def to_file(self) -> None:
        self.head(0, 302, Location="file:///etc/hostname")


@pytest.fixture
def serve(made_set: Path) -> Iterator[Callable[[str], tuple[str, list[str]]]]:
    servers = []

    def start(way: str) -> tuple[str, list[str]]:
        kind = type("Serving", (Hostile,), {"way": way, "asked": []})
        server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(kind, directory=str(made_set)))
        server.daemon_threads, server.handle_error = True, lambda *request: None  # type: ignore[method-assign]
        threading.Thread(target=server.serve_forever, daemon=True, args=(0.05,)).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}", kind.asked

    yield start
    for server in servers:
        server.shutdown()


WAYS = ["error", "stall", "silent", "drip", "drip_head", "short", "cut", "long", "changed", "reset", "loop", "to_file"]


@pytest.mark.parametrize("way", WAYS)
def test_a_bad_server_ends_in_time_and_leaves_nothing(
    way: str, serve: Callable[[str], tuple[str, list[str]]], made_set: Path, tmp_path: Path
) -> None:
    url, asked = serve(way)
    folder = storage_at(url, cache=tmp_path, cache_bytes=1 << 30, timeout=TIMEOUT)
    shard = read_index(folder).splits["train"][0]
    file, start = StoredFile(shard.file, shard.bytes, shard.sha256), time.monotonic()
    with pytest.raises(OSError, match="could not be fetched"):
        folder.local(*file)
    assert time.monotonic() - start < TIMEOUT + 1
    times = len(asked)
    with pytest.raises(OSError, match="could not be fetched"):
        folder.local(*file)
    assert len(asked) == times  # it is remembered
    assert not [path for path in tmp_path.rglob("*") if path.suffix in (".tar", ".part")]


@pytest.mark.parametrize("way", [way for way in WAYS if way not in ("long", "changed")])
def test_a_stream_from_a_bad_server_ends_in_time(way: str, serve: Callable[[str], tuple[str, list[str]]]) -> None:
    url, asked = serve(way)
    faults: list[Fault] = []
    samples, start = ShardSamples(note=faults.append, mean=10, timeout=TIMEOUT), time.monotonic()
    rows = list(samples([f"{url}/train-000000.tar"]))
    assert time.monotonic() - start < TIMEOUT + 1
    assert {fault.kind for fault in faults} <= {"missing", "cut"} and len(faults) == 1 and len(rows) <= 10
    if faults[0].kind == "missing":
        times = len(asked)
        assert not list(samples([f"{url}/train-000000.tar"] * 3)) and len(asked) == times and len(faults) == 1


def test_training_stops_when_too_many_are_certain_to_be_lost(
    serve: Callable[[str], tuple[str, list[str]]], make_module: Make, tmp_path: Path
) -> None:
    """One shard of four that cannot be fetched is more than a fifth: the other three are not tried."""
    url, asked = serve("error")
    data = make_module(url, batch=37, remote_cache=str(tmp_path), timeout=TIMEOUT, max_bad=0.18, cache_bytes=0)
    with pytest.raises(VarlabError, match=r"\d+ of 37 train samples .* over data.max_bad"):
        list(data.train_loader(0, 37, 0, 1))
    assert len(set(asked)) == 1


def test_the_bytes_of_an_honest_server_are_kept(
    serve: Callable[[str], tuple[str, list[str]]], make_module: Make, tmp_path: Path
) -> None:
    url, _ = serve("honest")
    data = make_module(url, remote_cache=str(tmp_path), timeout=TIMEOUT, cache_bytes=0, batch=37)
    (batch,) = data.train_loader(0, 37, 0, 1)
    assert bool(batch.valid_B.all()) and not batch.faults and len(list(tmp_path.rglob("*.tar"))) == 4
