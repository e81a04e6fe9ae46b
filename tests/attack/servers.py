"""A hostile server of shards: it stalls, drips, lies about lengths, redirects, resets or answers other bytes."""

from __future__ import annotations

import functools
import threading
import time
from http.server import ThreadingHTTPServer
from pathlib import Path
from random import Random

from tests.attack.shards import pack_set, read_set
from tests.attack.trial import Format, Reading
from tests.data.test_servers import WAYS, Hostile

__all__ = ["FORMATS"]

_TIMEOUT = 2.4  # seconds, data.timeout
_FILES = (".tar", ".npy", "index.json")
_HONEST = "honest .tar"


class _Choosing(Hostile):
    """Serves a folder, and the files of one ending in the way that the file ``way`` in it names."""

    def do_GET(self) -> None:
        self.way, ending = (Path(self.directory) / "way").read_text().split()
        if not self.path.endswith(ending):
            return self.honest()
        return getattr(self, self.way)()


@functools.cache
def _server(folder: str) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Choosing, directory=folder))
    server.daemon_threads, server.handle_error = True, lambda *request: None  # type: ignore[method-assign]
    threading.Thread(target=server.serve_forever, daemon=True, args=(0.05,)).start()
    return server


def _write(folder: Path) -> None:
    pack_set(folder)
    (folder / "way").write_text(_HONEST)


def _choose(rng: Random, path: Path) -> None:
    path.write_text(f"{rng.choice(WAYS)} {rng.choice(_FILES)}")


def _read(folder: Path) -> Reading:
    """Every image through the server; what enters the cache is whole."""
    url, start = f"http://127.0.0.1:{_server(str(folder)).server_port}", time.monotonic()
    try:
        return read_set(url, remote_cache=str(folder / "cache"), remote_bytes=1 << 30, timeout=_TIMEOUT)
    finally:
        assert time.monotonic() - start < 4 * (_TIMEOUT + 2), "the server was not given up in time"
        for kept in (folder / "cache").rglob("*.tar"):
            assert kept.read_bytes() == (folder / kept.name).read_bytes(), f"{kept} is not what was indexed"


FORMATS = (
    Format(
        "server", _write, _read, ("way",), _choose, place="http://127.0.0.1", lingers=True, other_kinds=False, cases=60
    ),
)
