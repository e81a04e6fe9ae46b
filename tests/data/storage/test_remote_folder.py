"""Shards behind a URL: fetched whole into a bounded cache, equal samples, and one sentence if a fetch fails."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch

from varlab.data.format.index import read_index
from varlab.data.pack.packer import pack
from varlab.data.shard_module import ShardDataModule
from varlab.data.storage import remote_folder
from varlab.data.storage.local_folder import StoredFile
from varlab.data.storage.remote_folder import RemoteFolder, storage_at
from varlab.types import VarlabError

Make = Callable[..., ShardDataModule]


@pytest.fixture(scope="module")
def shards(make_images: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served")
    pack(make_images(train=60, val=5), folder, shard_size=6)
    return folder


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None: ...


@pytest.fixture(scope="module")
def url(shards: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(shards)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def tars(cache: Path) -> list[Path]:
    return sorted(cache.rglob("*.tar"))


def held(cache: Path) -> int:
    """Bytes of shards; some may go while they are counted."""
    total = 0
    for path in tars(cache):
        with contextlib.suppress(FileNotFoundError):
            total += path.stat().st_size
    return total


@pytest.mark.parametrize("way", ["http", "file"])
@pytest.mark.parametrize(("workers", "open_shards"), [(0, None), (2, 2)])
def test_the_same_samples_as_from_the_folder(
    way: str, workers: int, open_shards: int | None, shards: Path, url: str, make_module: Make, tmp_path: Path
) -> None:
    where = url if way == "http" else f"file://{shards}"
    room = {"remote_cache": str(tmp_path / "cache"), "remote_bytes": 1 << 30}
    remote = make_module(where, workers=workers, open_shards=open_shards, cache_bytes=0, **room)
    local = make_module(shards, open_shards=open_shards)
    assert remote.info.hash == local.info.hash
    for ours, theirs in zip(remote.train_loader(0, 120, 0, 1), local.train_loader(0, 120, 0, 1), strict=True):
        assert torch.equal(ours.img_u8_B3HW, theirs.img_u8_B3HW) and not ours.faults
    for ours, theirs in zip(remote.eval_loader("val", 0, 1), local.eval_loader("val", 0, 1), strict=True):
        assert torch.equal(ours.img_u8_B3HW, theirs.img_u8_B3HW)
    assert len(tars(tmp_path / "cache")) == 11


def test_the_cache_stays_within_its_bound(shards: Path, make_module: Make, tmp_path: Path) -> None:
    largest = max(path.stat().st_size for path in shards.glob("*.tar"))
    room = {"remote_cache": str(tmp_path / "cache"), "remote_bytes": 4 * largest}
    data = make_module(f"file://{shards}", open_shards=2, cache_bytes=0, batch=4, **room)
    local = make_module(shards, open_shards=2, batch=4)
    for ours, theirs in zip(data.train_loader(0, 180, 0, 1), local.train_loader(0, 180, 0, 1), strict=True):
        assert torch.equal(ours.img_u8_B3HW, theirs.img_u8_B3HW)
        assert held(tmp_path / "cache") <= 4 * largest
    small = make_module(f"file://{shards}", **room | {"remote_bytes": 1000})
    with pytest.raises(VarlabError, match=r"has a shard of \d+ bytes: raise data\.remote_bytes above 1000"):
        list(small.train_loader(0, 8, 0, 1))


def test_shards_are_fetched_once_and_in_advance(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    folder = storage_at(f"file://{shards}", cache=tmp_path, cache_bytes=1 << 30)
    assert isinstance(folder, RemoteFolder)
    plain = folder._fetch
    # of this folder: another test's may still fetch in the background
    monkeypatch.setattr(folder, "_fetch", lambda name, *rest: (fetched.append(name), plain(name, *rest)))
    names = [StoredFile(path.name, path.stat().st_size) for path in sorted(shards.glob("train*.tar"))]
    folder.prefetch(names[:4])
    threads = [threading.Thread(target=folder.local, args=name) for name in names[:3] for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    folder._pool.shutdown(wait=True)  # type: ignore[union-attr]
    assert sorted(fetched) == [file.name for file in names[:4]]


def test_a_shard_that_cannot_be_fetched_is_missing(shards: Path, make_module: Make, tmp_path: Path) -> None:
    import shutil

    copy = Path(shutil.copytree(shards, tmp_path / "copy"))
    (copy / "train-000003.tar").unlink()
    room = {"remote_cache": str(tmp_path / "cache"), "remote_bytes": 1 << 30, "cache_bytes": 0}
    data = make_module(f"file://{copy}", max_bad=0.2, batch=60, **room)
    (batch,) = data.train_loader(0, 60, 0, 1)
    assert {fault.kind for fault in batch.faults} == {"missing"} and len({f.key for f in batch.faults}) == 6
    with pytest.raises(VarlabError, match=r"6 of 60 train samples .* are bad"):
        list(make_module(f"file://{copy}", max_bad=0.05, batch=60, **room).train_loader(0, 60, 0, 1))


def test_a_flaky_server_is_retried_and_a_dead_one_is_one_sentence(
    shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_folder.time, "sleep", lambda seconds: None)
    folder = storage_at(f"file://{shards}", cache=tmp_path / "one", cache_bytes=1 << 30)
    system = folder._filesystem()  # type: ignore[union-attr]
    plain, calls = system.get_file, []

    def flaky(remote: str, local: str) -> None:
        calls.append(remote)
        if len(calls) % 3:
            raise ConnectionError("reset by peer")
        plain(remote, local)

    monkeypatch.setattr(system, "get_file", flaky)
    assert folder.local("train-000000.tar").read_bytes() == (shards / "train-000000.tar").read_bytes()
    assert len(calls) == 3 and not list((tmp_path / "one").rglob("*.part"))
    monkeypatch.setattr("varlab.data.storage.remote_folder.ATTEMPTS", 2)
    with pytest.raises(OSError, match="could not be fetched"):
        folder.local("train-000001.tar")
    with pytest.raises(VarlabError, match=r"index\.json cannot be read"):
        read_index(storage_at("http://127.0.0.1:9/nothing", cache=tmp_path / "two", cache_bytes=1))
    with pytest.raises(VarlabError, match="nosuch://x cannot be read"):
        read_index(storage_at("nosuch://x", cache=tmp_path / "three", cache_bytes=1))


def test_a_fetch_reserves_its_room(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two fetches at once: neither takes the room that the other is about to fill."""
    names = [(path.name, path.stat().st_size) for path in sorted(shards.glob("train*.tar"))][:4]
    largest, both = max(size for _, size in names), threading.Barrier(2)
    folder = storage_at(f"file://{shards}", cache=tmp_path, cache_bytes=3 * largest)
    for name, size in names[:2]:
        folder.local(name, size)
    plain = RemoteFolder._fetch
    monkeypatch.setattr(RemoteFolder, "_fetch", lambda self, *asked: (both.wait(20), plain(self, *asked)))
    threads = [threading.Thread(target=folder.local, args=asked) for asked in names[2:]]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {path.name for path in tars(tmp_path)} >= {name for name, _ in names[2:]} and held(tmp_path) <= 3 * largest
