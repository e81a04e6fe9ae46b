"""Shard sets from elsewhere: what their headers, names and indexes say is checked before it is used."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.test_faults import png, sample, tar
from varlab.cli.main import main
from varlab.data.format.index import read_index
from varlab.data.format.labels import json_fields, read_label
from varlab.data.format.tar import ShardScan, scan_tar
from varlab.data.sequential.shard_samples import ShardSamples
from varlab.data.sequential.shard_stream import refuse_commands, shard_urls
from varlab.data.shard_module import ShardDataModule
from varlab.data.storage.remote_folder import storage_at
from varlab.types import Fault, VarlabError

Make = Callable[..., ShardDataModule]

BLOCKS = bytes(20 * 512)


def header(name: bytes, size: bytes, kind: bytes = b"0") -> bytes:
    """A header with a right checksum, whatever it says."""
    block = bytearray(512)
    block[: len(name)], block[124 : 124 + len(size)], block[156:157] = name, size, kind
    block[257:265], block[148:156] = b"ustar\x0000", b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def scanned(tmp_path: Path, content: bytes, seconds: float = 5.0) -> ShardScan:
    """A scan, which must end in time, and find the sound sample at the beginning."""
    (tmp_path / "x.tar").write_bytes(tar(sample("good", 1))[:2048] + content)
    start = time.process_time()
    scan = scan_tar(tmp_path, "x.tar")
    assert time.process_time() - start < seconds
    assert [record.key for record in scan.records][:1] == ["good"]
    return scan


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    size=st.one_of(
        st.sampled_from([b"-0000001000", b"+0000001000", b"0o000001000", b"0_0_0_1000", b"-1", b"\xff" * 12]),
        st.binary(min_size=12, max_size=12),
    ),
    kind=st.sampled_from([b"0", b"L", b"K", b"x", b"g", b"S", b"5", b"1", b"2", b"3"]),
)
def test_any_size_in_a_header_ends(size: bytes, kind: bytes, tmp_path: Path) -> None:
    content = header(b"bad.png", size, kind) + BLOCKS
    scan = scanned(tmp_path, content)
    end = (tmp_path / "x.tar").stat().st_size
    assert all(record.image.offset + record.image.size <= end for record in scan.records)
    faults: list[Fault] = []
    (tmp_path / "y.tar").write_bytes(content)
    rows = list(ShardSamples(note=faults.append, mean=1, timeout=9.0)([str(tmp_path / "y.tar")]))
    assert len(rows) + len(faults) <= 4


@pytest.mark.parametrize("size", [b"-0000001000", b"0o000001000", b"0_0_0_1000"])
def test_a_size_that_is_not_octal_is_damage(size: bytes, tmp_path: Path) -> None:
    assert [fault.kind for fault in scanned(tmp_path, header(b"bad.png", size) + BLOCKS).faults] == ["damaged"]


def pax(records: bytes, kind: bytes = b"x") -> bytes:
    return header(b"pax", b"%011o" % len(records), kind) + records.ljust(-(-len(records) // 512) * 512, b"\0")


def many_links(n: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for i in range(n):
            member = tarfile.TarInfo(f"{i:06d}.png")
            member.type, member.linkname = tarfile.SYMTYPE, f"{i + 1:06d}.png"
            archive.addfile(member)
    return buffer.getvalue()


LONG: dict[str, Callable[[], bytes]] = {
    "a pax header of many records": lambda: pax(b"5 a=\n" * 600_000) + header(b"a.png", b"0" * 11) + BLOCKS,
    "many pax records before many members": lambda: (
        pax(b"".join(b"13 %07d=1\n" % i for i in range(200_000)), b"g")
        + b"".join(header(b"%d.txt" % i, b"0" * 11) for i in range(400))
    ),
    "long names that are no names": lambda: b"".join(header(b"n", b"%011o" % (9 << 20), b"L") for _ in range(12_000)),
    "a chain of links": lambda: many_links(6_000),
    "one key again and again": lambda: b"".join(
        header(b"%s.x%d" % (key, i), b"0" * 11) for i in range(7_000) for key in (b"a", b"b")
    ),
    "damage after damage": lambda: b"".join(b"?" * 512 + header(b"%d.png" % i, b"0" * 11) for i in range(12_000)),
    "a name of a megabyte": lambda: (
        pax(b"1000014 path=" + b"n" * 1_000_000 + b"\n") + header(b"a.png", b"0" * 11) + BLOCKS
    ),
}


@pytest.mark.parametrize("what", LONG)
def test_what_costs_little_to_write_costs_little_to_read(what: str, tmp_path: Path) -> None:
    scan = scanned(tmp_path, LONG[what](), seconds=4.0)
    assert max(map(len, (record.key for record in scan.records))) <= 1024


def test_a_sparse_file_of_a_terabyte_ends(tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar(sample("good", 1))[:2048])
    os.truncate(tmp_path / "x.tar", 1 << 40)
    scan = scan_tar(tmp_path, "x.tar")
    assert [fault.kind for fault in scan.faults] == ["cut"] and len(scan.records) == 1


@pytest.mark.parametrize("content", [b"7" * 5000, b"9" * 19])
def test_a_label_of_many_digits_is_bad(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.tar").write_bytes(tar([*sample("good", 1), *sample("bad", 2, label=content)]))
    (fault,) = scan_tar(tmp_path, "x.tar").faults
    assert (fault.kind, fault.key) == ("bad_label", "bad") and len(fault.detail) < 80
    with pytest.raises(Exception, match="json holds label"):
        read_label(None, {"label": int("9" * 400)}, "auto")


def test_json_that_is_nested_deep_is_none(tmp_path: Path) -> None:
    deep = b'{"label":' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    assert json_fields(deep) == {}
    (tmp_path / "x.tar").write_bytes(tar([("a.png", png(1)), ("a.json", deep)]))
    assert [record.label for record in scan_tar(tmp_path, "x.tar").records] == [None]


# -- an index from elsewhere -------------------------------------------------------------------------------------------


@pytest.fixture
def copy(made_set: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made_set, tmp_path / "set"))


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change an index as a stranger would, who leaves no digest."""
    raw = json.loads((folder / "index.json").read_text())
    raw.pop("sha256", None)
    change(raw)
    (folder / "index.json").write_text(json.dumps(raw))


@pytest.mark.parametrize(
    "name", ["/tmp/x", "../x", "a/../../x", "a//b", ".hidden", "", "a/./b", "\0", "n" * 2000, 5, None]
)
@pytest.mark.parametrize("entry", ["splits", "tables"])
def test_a_path_out_of_the_folder_is_refused(name: object, entry: str, copy: Path, tmp_path: Path) -> None:
    def change(raw: dict[str, Any]) -> None:
        (raw["splits"]["train"][0] if entry == "splits" else raw["tables"]["train"])["file"] = name

    rewrite(copy, change)
    before = sorted(tmp_path.rglob("*"))
    for storage in (copy, storage_at(f"file://{copy}", cache=tmp_path / "cache", cache_bytes=1 << 30)):
        with pytest.raises(VarlabError, match=r"index\.json is damaged .*file"):
            read_index(storage)
    assert [path for path in sorted(tmp_path.rglob("*")) if "cache" not in path.parts] == before


def test_a_link_in_the_cache_leads_no_write_outside(copy: Path, tmp_path: Path) -> None:
    folder = storage_at(f"file://{copy}", cache=tmp_path / "cache", cache_bytes=1 << 30)
    (tmp_path / "outside").mkdir()
    cache = folder.local("index.json").parent
    (cache / "sub").symlink_to(tmp_path / "outside")
    with pytest.raises(VarlabError, match="leads out of the cache by a link"):
        folder.local("sub/train-000000.tar")
    assert not list((tmp_path / "outside").iterdir())


WRONG: dict[str, Callable[[dict[str, Any]], Any]] = {
    "classes": lambda raw: raw.update(classes=[1, 2, 3]),
    "no classes": lambda raw: raw.update(classes="abc"),
    "size": lambda raw: raw.update(image_size=["8", 8]),
    "huge size": lambda raw: raw.update(image_size=[60_000, 60_000]),
    "count": lambda raw: raw["splits"]["train"][0].update(count=10**15),
    "negative": lambda raw: raw["splits"]["train"][0].update(bytes=-5),
    "bytes": lambda raw: raw["splits"]["train"][0].update(bytes="many"),
    "hash": lambda raw: raw["splits"]["train"][0].update(sha256=None),
    "splits": lambda raw: raw.update(splits=[]),
    "shard": lambda raw: raw["splits"].update(train=[5]),
    "faults": lambda raw: raw.update(faults={"cut": "x"}),
    "depth": lambda raw: raw.update(depth={"integer": 10**9}),
    "steps": lambda raw: raw.update(steps={"a": "b"}),
    "source": lambda raw: raw.update(source=7),
    "shards": lambda raw: raw.update(shards=7),
    "rows": lambda raw: raw["tables"]["train"].update(count=10**12),
    "fewer classes": lambda raw: raw.update(classes=["a"]),
    "fewer shards": lambda raw: raw["splits"].update(train=raw["splits"]["train"][:1]),
    "conditions": lambda raw: raw.update(conditions="edges"),
    "version": lambda raw: raw.update(version=[2]),
}


@pytest.mark.parametrize("what", WRONG)
def test_an_index_of_wrong_types_is_one_sentence(what: str, copy: Path, make_module: Make) -> None:
    rewrite(copy, WRONG[what])
    with pytest.raises(VarlabError, match=r"(index\.json|samples\.npy|most_pixels)"):
        make_module(copy).reader("train")


@pytest.mark.parametrize("content", [b"\xff\xfe{}", b"[" * 200_000, b"[]", b"5", b"null", b""])
def test_an_index_that_is_no_json_is_one_sentence(content: bytes, copy: Path) -> None:
    (copy / "index.json").write_bytes(content)
    with pytest.raises(VarlabError, match=r"index\.json is damaged"):
        read_index(copy)


def test_a_changed_index_is_named(copy: Path) -> None:
    text = (copy / "index.json").read_text()
    (copy / "index.json").write_text(text.replace('"b"', '"B"', 1))
    with pytest.raises(VarlabError, match=r"index\.json was changed .* run `varlab index"):
        read_index(copy)


def arrays() -> Iterator[tuple[str, bytes]]:
    def saved(array: np.ndarray[Any, Any], **how: Any) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, array, **how)
        return buffer.getvalue()

    def headed(text: str) -> bytes:
        return b"\x93NUMPY\x02\x00" + len(text).to_bytes(4, "little") + text.encode()

    shape = "{{'descr': '{}', 'fortran_order': False, 'shape': ({},)}}\n".format
    yield "two dimensions", saved(np.zeros((37, 2)))
    yield "numbers", saved(np.zeros(37))
    yield "pickles", saved(np.array([{}] * 37, dtype=object), allow_pickle=True)
    yield "many rows", headed(shape("<u4", 10**14))
    yield "negative rows", headed(shape("<u4", -37))
    yield "deep", headed("-" * 9000 + "1\n")
    yield "brackets", headed("[" * 9000)
    yield "long", headed("9" * (1 << 20))
    yield "zip", b"PK\x03\x04" + bytes(100)
    yield "nothing", b""


@pytest.mark.parametrize(("what", "content"), [*arrays()], ids=[what for what, _ in arrays()])
def test_a_table_that_is_none_is_one_sentence(what: str, content: bytes, copy: Path) -> None:
    (copy / "train.samples.npy").write_bytes(content)
    check = hashlib.sha256(content).hexdigest()
    rewrite(copy, lambda raw: raw["tables"]["train"].update(sha256=check))
    with pytest.raises(VarlabError, match=r"train\.samples\.npy cannot be read .* run `varlab index"):
        read_index(copy).table("train")


@pytest.mark.parametrize(
    ("column", "value"), [("offset", 1 << 63), ("size", (1 << 32) - 1), ("label", 3), ("label", -1)]
)
def test_a_row_that_fits_no_shard_is_one_sentence(column: str, value: int, copy: Path) -> None:
    table = np.load(copy / "train.samples.npy")
    table[column][7] = value
    np.save(copy / "train.samples.npy", table)
    check = hashlib.sha256((copy / "train.samples.npy").read_bytes()).hexdigest()
    rewrite(copy, lambda raw: raw["tables"]["train"].update(sha256=check))
    with pytest.raises(VarlabError, match=r"train\.samples\.npy cannot be read"):
        read_index(copy).table("train")


# -- pipes, sockets and devices ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["index.json", "train.samples.npy", "train-000000.tar"])
def test_a_pipe_in_the_place_of_a_file_is_refused(name: str, copy: Path, make_module: Make) -> None:
    (copy / name).unlink()
    os.mkfifo(copy / name)
    with pytest.raises(VarlabError, match=r"no index\.json|no plain file|missing"):
        list(make_module(copy, cache_bytes=0).train_loader(0, 32, 0, 1))
    faults: list[Fault] = []
    assert not list(ShardSamples(note=faults.append, mean=10, timeout=9.0)([str(copy / name)]))
    assert [fault.kind for fault in faults] == ["missing"] and "no plain file" in faults[0].detail
    assert main(["index", str(copy), "max_bad=0.5"]) in (0, 1)


@pytest.mark.parametrize("url", ["gs://b/x'; touch X; '.tar", "sftp://h/$(touch X).tar", "gs://b/`touch X`.tar"])
def test_an_address_never_reaches_a_shell(url: str) -> None:
    with pytest.raises(VarlabError, match="signs a shell would read"):
        shard_urls([url], "data.train")


@pytest.mark.parametrize(
    "spec", ["pipe:touch X", ["a.tar", "PIPE:touch X"], "pip{e:touch X,e:touch Y}", "{pipe:touch X,b}"]
)
def test_a_record_runs_no_command(spec: Any) -> None:
    refuse_commands({"train": "a-{00..03}.tar", "val": ["http://h/b.tar"], "path": "pipe:x"})
    for split in ("train", "val"):
        with pytest.raises(VarlabError, match="A record asks to run"):
            refuse_commands({split: spec})


NESTED = "{x," + "{a,b}" * 40 + "}y{c,d}"


@pytest.mark.parametrize(
    "spec",
    [
        "x-{0..999999999999}.tar",
        "{0..9" + "9" * 50 + "}",
        "{0..9" + "9" * 5000 + "}",
        "{a,b}" * 40,
        NESTED,
        NESTED + "{",
        "{" * 9999 + "}" * 9999,
    ],
)
def test_braces_are_bounded(spec: str) -> None:
    with pytest.raises(VarlabError, match=r"data\.train (cannot be expanded|names more than)"):
        shard_urls(spec, "data.train")


@pytest.mark.parametrize(
    ("spec", "count"),
    [("a-{000..127}.tar", 128), ("{a{0..99},b{0..99}}", 200), ("{a,b}{c,d,e}", 6), ("a{b}c", 1), ("{5..-5..2}", 6)],
)
def test_braces_name_shards(spec: str, count: int) -> None:
    assert len(shard_urls(spec, "data.train")) == count
