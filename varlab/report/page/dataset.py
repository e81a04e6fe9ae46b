"""The page of a shard set: what is in it, how many of each class, what was left out, and how it looks."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from varlab.files import write_text
from varlab.report.page.html import stylesheet

__all__ = ["DatasetFacts", "write_dataset_page"]

_HERE = Path(__file__).parent
_MOST_CLASSES = 1000  # rows of the table; a longer one helps nobody
_MOST_BAD = 200


@dataclass(frozen=True)
class DatasetFacts:
    """What the page says. facts: lines of the box at the top. counts: of each class, by split. bad: what was left out or
    is wrong: (kind or reason, where, detail). sheet: a PNG, and what it shows."""

    title: str
    headline: str
    facts: Sequence[tuple[str, str]]
    counts: Mapping[str, Mapping[str, int]]
    bad: Sequence[tuple[str, str, str]] = ()
    sheet: bytes | None = None
    shows: str = ""


def write_dataset_page(path: Path, told: DatasetFacts) -> None:
    """One self-contained HTML file, whole or not at all."""
    splits = list(told.counts)
    names = list(dict.fromkeys(name for of in told.counts.values() for name in of))
    largest = max((sum(told.counts[s].get(name, 0) for s in splits) for name in names), default=1) or 1
    rows = [
        {
            "name": name,
            "counts": [f"{told.counts[s].get(name, 0):,}" for s in splits],
            "share": 100 * sum(told.counts[s].get(name, 0) for s in splits) / largest,
        }
        for name in names[:_MOST_CLASSES]
    ]
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    text = environment.get_template("dataset.html.j2").render(
        css=Markup(stylesheet()),
        told=told,
        splits=splits,
        rows=rows,
        more=max(len(names) - _MOST_CLASSES, 0),
        bad=told.bad[:_MOST_BAD],
        more_bad=max(len(told.bad) - _MOST_BAD, 0),
        sheet=None if told.sheet is None else base64.b64encode(told.sheet).decode(),
    )
    write_text(path, text)
