"""PNG and JPEG files with flipped bits or with headers that ask for hours: no wrong pixel, no long wait."""

from __future__ import annotations

import io
import shutil
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.test_faults import png, sample, tar
from varlab.cli.main import main
from varlab.data.faults import BadSampleError
from varlab.data.format.scan import ScanSettings, scan_shards
from varlab.data.image.decode import decode
from varlab.data.image.picture import PixelRules
from varlab.data.image.png import check_png
from varlab.data.image.resize import Fit
from varlab.data.pack.shard_jobs import PackedShard
from varlab.launch.user_message import report

RULES = PixelRules(most_pixels=1 << 20)


def flipped(content: bytes, bit: int) -> bytes:
    changed = bytearray(content)
    changed[bit // 8] ^= 1 << bit % 8
    return bytes(changed)


def test_no_flipped_bit_of_a_png_gives_other_pixels() -> None:
    ramp_HW, buffer = np.add.outer(np.arange(32) * 4, np.arange(32) * 3), io.BytesIO()
    Image.fromarray(np.stack([ramp_HW] * 3, -1).astype(np.uint8)).save(buffer, format="PNG")
    whole = buffer.getvalue()
    right, fit = decode(whole, RULES), Fit(size=None, resample="bicubic", check="decode", rules=RULES)
    wrong_before = 0
    for bit in range(len(whole) * 8):
        content = flipped(whole, bit)
        try:
            wrong_before += not np.array_equal(decode(content, RULES), right)
        except BadSampleError:
            continue
        try:
            stored = fit(content).image
        except BadSampleError:
            continue
        assert isinstance(stored, bytes) and np.array_equal(decode(stored, RULES), right)
    assert wrong_before > 5  # without checksums, these would be packed


@pytest.mark.parametrize("decoded", [True, False])
def test_indexing_names_a_flipped_bit(decoded: bool, tmp_path: Path) -> None:
    content = png(3)
    bad = flipped(content, (content.index(b"IDAT") + 30) * 8)
    members = [*sample("good", 1), *sample("bad", 3, bad)]
    (tmp_path / "x.tar").write_bytes(tar(members))
    (tmp_path / "y.tar").write_bytes(tar([*sample("cond", 2), ("cond.cond.png", bad)]))
    settings = ScanSettings(label="auto", classes=None, decode=decoded, most_pixels=1 << 20, size=None)
    scans = scan_shards(tmp_path, {"train": ["x.tar", "y.tar"]}, settings, 0, None)["train"]
    faults = {fault.key: fault for scan in scans for fault in scan.faults}
    assert set(faults) == {"bad", "cond"} and all(fault.kind == "corrupt" for fault in faults.values())
    assert "checksum of its chunk b'IDAT'" in faults["bad"].detail


def test_the_check_costs_little() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format="PNG")

    def seconds(action: object) -> float:
        times = []
        for _ in range(5):
            start = time.process_time()
            action()  # type: ignore[operator]
            times.append(time.process_time() - start)
        return min(times)

    content = buffer.getvalue()
    assert seconds(lambda: check_png(content)) < 0.25 * seconds(lambda: decode(content, RULES))


def test_a_text_with_a_wrong_checksum_stays_usable() -> None:
    whole = png(1)
    text = b"tEXtSoftware\0x"
    chunk = struct.pack(">I", len(text) - 4) + text + struct.pack(">I", zlib.crc32(text) ^ 1)
    check_png(whole[:33] + chunk + whole[33:])


def test_a_jpeg_of_many_scans_is_refused_at_once() -> None:
    buffer = io.BytesIO()
    Image.new("L", (64, 64)).save(buffer, format="JPEG", progressive=True)
    content = buffer.getvalue()
    assert decode(content, RULES).shape == (64, 64, 3)
    scan = content[content.rindex(b"\xff\xda") : -2]
    with pytest.raises(BadSampleError, match="scans"):
        decode(content[:-2] + scan * 1000 + b"\xff\xd9", RULES)


def test_a_killed_loader_process_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    said = report(RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. "))
    assert said.startswith("A loader process was killed") and "\n" not in said
    assert "Traceback" not in capsys.readouterr().err


def test_a_staged_shard_that_changed_is_packed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A packing that was stopped before its shards were moved goes on with sound shards alone."""
    asked = ("pack", "source=digits", "shard_size=300", "workers=0", "sheet=0")
    assert main([*asked, f"out={tmp_path / 'whole'}"]) == 0
    whole = {path.name: path.read_bytes() for path in (tmp_path / "whole").glob("*.tar")}
    monkeypatch.setattr("varlab.data.pack.packer._check", lambda packed: (_ for _ in ()).throw(KeyboardInterrupt))
    assert main([*asked, f"out={tmp_path / 'out'}"]) == 130
    monkeypatch.undo()
    staged = sorted((tmp_path / "out" / ".packing").glob("*.tar"))
    staged[1].write_bytes(flipped(staged[1].read_bytes(), 5000))
    note = staged[2].with_name(f"{staged[2].name}.json")
    note.write_text(note.read_text().replace('label\\": 1', 'label\\": 2', 1))
    assert main([*asked, f"out={tmp_path / 'out'}"]) == 0
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").glob("*.tar")} == whole
    with pytest.raises(ValueError, match="changed"):
        PackedShard.from_json('{"digest": "0", "note": "{}"}')


def test_a_folder_that_vanishes_while_it_is_scanned_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.tar").write_bytes(tar(sample("a", 1)))
    monkeypatch.setattr("varlab.data.format.scan.sha256", lambda path: shutil.rmtree(tmp_path) or path.read_bytes())
    settings = ScanSettings(label="auto", classes=None, decode=True, most_pixels=1 << 20, size=None)
    (scan,) = scan_shards(tmp_path, {"train": ["x.tar"]}, settings, 0, None)["train"]
    assert [fault.kind for fault in scan.faults] == ["missing"] and not scan.records
