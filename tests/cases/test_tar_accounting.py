"""Whatever a tar's writer and its damage: every sample that was written is read, or is named, or lies in a named damage."""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections import Counter
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from varlab.data.archive.link import MappedLinks
from varlab.data.archive.name import is_read
from varlab.data.archive.sample_group import BadGroup, SampleGroups
from varlab.data.archive.tape import StreamTape
from varlab.data.faults import KINDS
from varlab.data.format.tar import ShardScan, scan_tar

JPEG = b"\xff\xd8\xff\xe0" + b"\x5a" * 700 + b"\xff\xd9"
WRITERS = ("gnu", "pax", "ustar", "bsdtar", "v7")
NOTES = ("README", "classes.txt")
SIDES = (*NOTES, "._{}.jpg", "__MACOSX/._{}.jpg", "PaxHeader/{}.jpg", ".DS_Store")
Archive = tuple[bytes, list[str]]


def block(name: bytes, size: int) -> bytes:
    """A header of v7."""
    made = bytearray(name.ljust(100, b"\0") + b"0000644\0" * 3 + b"%011o\0" % size + b"0" * 11 + b"\0" + bytes(364))
    made[148:156] = b"%06o\0 " % (sum(made) + 8 * 32)
    return bytes(made[:512])


def v7(members: list[tuple[str, bytes]]) -> bytes:
    blocks = (block(name.encode(), len(body)) + body + bytes(-len(body) % 512) for name, body in members)
    return b"".join(blocks) + bytes(1024)


def written(members: list[tuple[str, bytes]], writer: str, first: dict[bytes, str]) -> bytes:
    """A tar; a content that occurs again is a hard link if ``first`` is to hold the names of contents."""
    if writer == "v7":
        return v7(members)
    form = {"gnu": tarfile.GNU_FORMAT, "ustar": tarfile.USTAR_FORMAT}.get(writer, tarfile.PAX_FORMAT)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        for name, body in members:
            info = tarfile.TarInfo(name)
            if writer == "bsdtar":
                info.pax_headers = {"LIBARCHIVE.creationtime": "1.5", "SCHILY.dev": "7", "mtime": "3.25"}
            if body in first:
                info.type, info.linkname = tarfile.LNKTYPE, first[body]
                archive.addfile(info)
            else:
                info.size = len(body)
                archive.addfile(info, io.BytesIO(body))
            if len(body) == 1 and first is not NO_LINKS:
                first.setdefault(body, name)
    return buffer.getvalue()


NO_LINKS: dict[bytes, str] = {}


@st.composite
def archives(draw: st.DrawFn, prefix: str = "") -> Archive:
    """A tar of some writer, with side files and links; and the keys of its samples."""
    writer = draw(st.sampled_from(WRITERS))
    stem = draw(
        st.sampled_from(["{}", "./{}", "folder.x/{}", "long/" * (6 if writer in ("ustar", "v7") else 30) + "{}"])
    )
    keys = [stem.format(f"{prefix}{i}") for i in range(draw(st.integers(1, 6)))]
    members = []
    for i, key in enumerate(keys):
        members += [(f"{key}.jpg", JPEG + bytes([i + 1])), (f"{key}.cls", b"%d" % (i % 2))]
        if draw(st.integers(0, 3)) == 0:
            side = draw(st.sampled_from(SIDES))
            at = len(members) - (side not in NOTES)  # side files also lie between members of a sample
            members.insert(at, (side.format(f"{prefix}{i}"), b"\0\5\x16\7"))
    links = writer != "v7" and draw(st.booleans())
    return written(members, writer, {} if links else NO_LINKS), keys


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The bytes cut off, zeroed in whole blocks or from anywhere to the end, or changed in a header or anywhere."""
    at = draw(st.integers(0, len(content.rstrip(b"\0"))))
    length = draw(st.integers(1, 6000))
    low = at - at % 512
    kind = draw(st.sampled_from(["cut", "zero", "zero blocks", "zero tail", "flip", "blank header", "append"]))
    return {
        "cut": content[:at],
        "zero": content[:at] + bytes(len(content[at : at + length])) + content[at + length :],
        "zero blocks": content[:low] + bytes(len(content[low : low + 512])) + content[low + 512 :],
        "zero tail": content[:at] + bytes(len(content) - at),
        "flip": content[:at] + bytes(b ^ 0x15 for b in content[at : at + 3]) + content[at + 3 :],
        "blank header": content[:low] + b"?" * len(content[low : low + 512]) + content[low + 512 :],
        "append": content + b"\1" * length,
    }[kind]


def scanned(content: bytes) -> ShardScan:
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "x.tar").write_bytes(content)
        return scan_tar(Path(folder), "x.tar")


def streamed(content: bytes) -> tuple[list[str], Counter[str], list[str]]:
    """The keys of the samples of a stream, its faults by key, and its damages. Links are followed as in the file."""
    tape = StreamTape(io.BytesIO(content), wanted=is_read)
    groups = SampleGroups(tape, _FileLinks(content))
    given = list(groups)
    keys = [group.key for group in given if not isinstance(group, BadGroup) and group.key not in groups.torn]
    faults = Counter(group.key for group in given if isinstance(group, BadGroup))
    return keys, faults, [damage.detail for damage in groups.damages]


class _FileLinks(MappedLinks):
    """Links of a content in memory."""

    def __init__(self, content: bytes):
        super().__init__(StreamTape(io.BytesIO(content), wanted=is_read))  # type: ignore[arg-type]  # a tape like another


@settings(max_examples=30, deadline=None)
@given(archives())
def test_a_whole_archive_of_any_writer_is_read(archive: Archive) -> None:
    content, keys = archive
    scan = scanned(content)
    assert [record.key for record in scan.records] == keys and not scan.faults
    assert [record.label for record in scan.records] == [i % 2 for i in range(len(keys))]


@settings(max_examples=30, deadline=None)
@given(archives("a"), archives("b"), st.sampled_from([0, 512, 10240]))
def test_concatenated_archives_are_read(one: Archive, two: Archive, padding: int) -> None:
    scan = scanned(one[0] + bytes(padding) + two[0])
    assert [record.key for record in scan.records] == one[1] + two[1]


@settings(max_examples=80, deadline=None)
@given(st.data(), archives("a"), archives("b"), st.booleans())
def test_read_and_named_is_written(data: st.DataObject, one: Archive, two: Archive, both: bool) -> None:
    """Each sample is read with all its members, or named by its key, or the shard has a fault; a stream agrees."""
    content, keys = (one[0] + two[0], one[1] + two[1]) if both else one
    broken = data.draw(damaged(content))
    scan = scanned(broken)
    whole = {record.key for record in scan.records if record.label is not None}
    named = {fault.key for fault in scan.faults} | {record.key for record in scan.records if record.label is None}
    missing = [key for key in keys if key not in whole | named]
    assert {fault.kind for fault in scan.faults} <= set(KINDS)
    if missing and not _ends_cleanly(broken, scan):
        assert any(not fault.key for fault in scan.faults), (missing, scan.faults)
    if broken:
        assert streamed(broken)[0] == [record.key for record in scan.records] or _labels_are_bad(scan)
        assert streamed(broken)[2] == [fault.detail for fault in scan.faults if not fault.key]


def _labels_are_bad(scan: ShardScan) -> bool:
    """Whether samples were left out for their labels, which a stream finds when it decodes."""
    return any(fault.kind == "bad_label" for fault in scan.faults)


def _ends_cleanly(broken: bytes, scan: ShardScan) -> bool:
    """Whether a file is, to the byte, an archive of fewer samples: zeros from a header on, no more than an end mark has."""
    end = -(-len(broken.rstrip(b"\0")) // 512) * 512
    zeros = len(broken) - end
    return not scan.faults and 512 <= zeros <= 10240 + 512
