"""Scan the shards of a folder: their headers, hashes, labels and images, and every fault in them."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from torch.utils.data import DataLoader, Dataset

from varlab.data.archive.compression import check_packing
from varlab.data.faults import BadSampleError
from varlab.data.folders.splits import assign_splits
from varlab.data.folders.tree import Tree
from varlab.data.format.labels import NO_LABEL, UNLABELLED, names_of, numbering
from varlab.data.format.table import SampleRecord, Span
from varlab.data.format.tar import ShardScan, log_notes, scan_tar
from varlab.data.image.depth import ASSUMED, Depths
from varlab.data.image.picture import PixelRules, open_picture
from varlab.data.image.png import check_png
from varlab.data.image.resize import WRONG_ENDING
from varlab.data.workers import worker_results
from varlab.errors import VarlabError
from varlab.files import sha256
from varlab.info import Fault

__all__ = ["Progress", "ScanSettings", "number_labels", "scan_shards", "split_files"]

Progress = Callable[[int, int], None]
"""Receives the number of items that are done, and of all."""


@dataclass(frozen=True)
class ScanSettings:
    """What a scan checks.

    label: where the labels are, see ``read_label``. classes: the names in label order, or None to take them from the labels.
    decode: whether to decode every image. most_pixels: larger images are bad. size: (H, W) of every image, or None for any.
    depths: the bits of values that are more than bytes; those of the largest where none are given.
    """

    label: str
    classes: tuple[str, ...] | None
    decode: bool
    most_pixels: int
    size: tuple[int, int] | None
    depths: Depths = field(default_factory=dict)


def split_files(
    folder: Path, patterns: Mapping[str, str | None], *, ending: str = "tar", key: str = "split"
) -> tuple[dict[str, list[str]], list[str]]:
    """The files of train and val with an ending below a folder, in order of name, and sentences about what was decided.

    Each real file counts once; hidden ones do not. patterns, key: see ``assign_splits``.

    Raises:
        VarlabError: there is no such file, one is compressed, or one matches no pattern.
    """
    tree = Tree(folder)
    every = tree.files()
    files = sorted(file for file in every if file.lower().endswith(f".{ending}"))
    if ending == "tar":
        check_packing(folder, files, beside=every)
    passed = tree.passed.sentences()
    if not files:
        also = "".join(f" ({sentence})" for sentence in passed)
        raise VarlabError(f"{folder} holds no *.{ending}: give the folder that contains them{also}.")
    splits, notes = assign_splits(files, patterns, where=str(folder), key=key)
    return splits, [*passed, *notes]


def scan_shards(
    folder: Path, splits: Mapping[str, Sequence[str]], settings: ScanSettings, workers: int, progress: Progress | None
) -> dict[str, list[ShardScan]]:
    """Scan the shards of each split with ``workers`` processes (0: in this one)."""
    files = [file for of in splits.values() for file in of]
    count = min(workers, len(files))
    context = multiprocessing.get_start_method(allow_none=True) or "fork" if count else None
    loader = DataLoader(
        _Scans(folder, files, settings), batch_size=None, num_workers=count, multiprocessing_context=context
    )
    scans = []
    for scan in worker_results(iter(loader)):
        scans.append(scan)
        if progress is not None:
            progress(len(scans), len(files))
    log_notes(scans)
    rest = iter(scans)
    return {split: list(islice(rest, len(of))) for split, of in splits.items()}


def number_labels(scans: Iterable[ShardScan], *, label: str, classes: tuple[str, ...] | None) -> tuple[str, ...]:
    """Replace each label by its number, in place, and return the class names; a sample without a label becomes a fault.

    label: see ``read_label``. classes: the names, or None to take them from the labels.
    """
    scans = list(scans)
    labels = {record.label for scan in scans for record in scan.records}
    if label == "none" or labels <= {None}:
        for scan in scans:
            scan.update(lambda record: replace(record, label=0))
        return classes or UNLABELLED
    names = classes or names_of(labels)
    number = numbering(names, missing=NO_LABEL)
    for scan in scans:
        scan.update(lambda record: replace(record, label=number(record.label)))
    return names


class _Scans(Dataset[ShardScan]):
    """Item i is the scan of the i-th file, its images checked."""

    def __init__(self, folder: Path, files: Sequence[str], settings: ScanSettings):
        self._folder, self._files, self._settings = folder, files, settings
        self._rules = PixelRules(most_pixels=settings.most_pixels, depths=settings.depths)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, i: int) -> ShardScan:
        path = self._folder / self._files[i]
        scan = scan_tar(self._folder, self._files[i], label=self._settings.label)
        if not path.is_file():
            return scan
        try:
            scan.bytes, scan.sha256 = path.stat().st_size, sha256(path)
            with path.open("rb") as tar:
                scan.update(lambda record: self._checked(record, tar, scan))
        except OSError as e:  # it was removed meanwhile, or its disk fails
            lost = Fault("missing", scan.file, "", e.strerror or str(e), samples=len(scan.records))
            return ShardScan(scan.file, faults=[*scan.faults, lost])
        return scan

    def _checked(self, record: SampleRecord, tar: BinaryIO, scan: ShardScan) -> SampleRecord:
        """Check the images of a sample, and note what is known of the first. BadSampleError if one is bad."""
        encoded = [_read(tar, span) for span in (record.image, record.condition) if span is not None]
        for one in encoded:
            check_png(one)
        picture = open_picture(encoded[0], self._rules)
        if self._settings.size not in (None, picture.size):
            raise BadSampleError("wrong_size", f"{picture.size[1]}×{picture.size[0]}, not {self._settings.size[::-1]}")
        if self._settings.decode:
            decoded = picture.decode()
            if record.condition is not None:
                open_picture(encoded[1], replace(self._rules, depths=ASSUMED)).decode()
            scan.steps.update(decoded.steps)
            scan.deep.update([decoded.deep] if decoded.deep else [])
        scan.sizes.add(picture.size)
        scan.steps.update([WRONG_ENDING] if picture.form != record.format else [])
        return replace(record, format=picture.form)


def _read(tar: BinaryIO, span: Span) -> bytes:
    tar.seek(span.offset)
    return tar.read(span.size)
