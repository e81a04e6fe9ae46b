"""The page of a shard set: its contents, the images of each class, what was left out, and a contact sheet."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from varlab.files import write_text
from varlab.report.page.template import render_template

__all__ = ["DatasetFacts", "write_dataset_page"]

_MOST_CLASSES = 1000  # rows of the table
_MOST_BAD = 200


@dataclass(frozen=True)
class DatasetFacts:
    """The content of the page.

    facts: lines of the box at the top. counts: of each class, by split. bad: (kind or reason, where, detail) of what was
    left out or is damaged. sheet: a contact sheet as PNG. caption: of the sheet.
    """

    title: str
    headline: str
    facts: Sequence[tuple[str, str]]
    counts: Mapping[str, Mapping[str, int]]
    bad: Sequence[tuple[str, str, str]] = ()
    sheet: bytes | None = None
    caption: str = ""


def write_dataset_page(path: Path, dataset: DatasetFacts) -> None:
    """Write one self-contained HTML file atomically."""
    splits = list(dataset.counts.values())
    names = list(dict.fromkeys(name for split in splits for name in split))
    counts = {name: [split.get(name, 0) for split in splits] for name in names}
    largest = max(map(sum, counts.values()), default=1) or 1
    text = render_template(
        "dataset.html.j2",
        dataset=dataset,
        rows=[(name, counts[name], 100 * sum(counts[name]) / largest) for name in names[:_MOST_CLASSES]],
        more=max(len(names) - _MOST_CLASSES, 0),
        bad=dataset.bad[:_MOST_BAD],
        more_bad=max(len(dataset.bad) - _MOST_BAD, 0),
        sheet=None if dataset.sheet is None else base64.b64encode(dataset.sheet).decode(),
    )
    write_text(path, text)
