"""Numbers and tables as text: for people, Markdown and CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterable, Sequence

from varlab.files import printable

__all__ = [
    "csv_text",
    "duration",
    "join_names",
    "markdown_table",
    "minus",
    "percent",
    "si",
    "signed",
    "significant",
    "whole",
]

_PREFIXES = ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def significant(x: float) -> str:
    """Three significant digits, with an exponent only below .001 or from a million: ``12.3``, ``0.871``, ``1,230``."""
    if x == 0:
        return "0"
    if not 1e-3 <= abs(x) < 1e6:
        return f"{x:.2e}"
    decimals = next(places for places, bound in ((0, 100), (1, 10), (2, 1), (3, 0)) if abs(x) >= bound)
    return f"{x:,.{decimals}f}"


def percent(x: float) -> str:
    """A share as a percentage with one decimal: ``97.3%``."""
    return f"{100 * x:.1f}%"


def whole(x: float) -> str:
    """A count with a comma between thousands: ``60,000``."""
    return f"{x:,.0f}"


def si(x: float) -> str:
    """Three digits and an SI prefix: ``3.21 T`` is 3.21e12."""
    scale, prefix = next(((scale, f" {prefix}") for scale, prefix in _PREFIXES if abs(x) >= scale), (1.0, ""))
    return f"{x / scale:.3g}{prefix}" if abs(x / scale) < 1000 else f"{x / scale:,.0f}{prefix}"


def minus(text: str) -> str:
    """Replace the first hyphen of a number by a minus sign."""
    return text.replace("-", "\N{MINUS SIGN}", 1)


def signed(x: float, show: Callable[[float], str] = significant) -> str:
    """A difference with its sign: ``+1.20``, ``−0.300``."""
    return f"{'+' if x > 0 else '−' if x < 0 else ''}{show(abs(x))}"


def duration(seconds: float) -> str:
    """A time in its two largest units: ``3 d 4 h``, ``1 min 34 s``, ``2.4 ms``."""
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, left = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {left} s" if left else f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes} min"
    return f"{hours // 24} d {hours % 24} h"


_MOST_NAMED = 20


def join_names(names: Sequence[str]) -> str:
    """Names as a sentence lists them: ``a, b and c``; of many, the first twenty and the number of the others."""
    if len(names) > _MOST_NAMED + 1:
        names = [*names[:_MOST_NAMED], f"{len(names) - _MOST_NAMED:,} more"]
    return " and ".join([", ".join(names[:-1]), *names[-1:]]) if len(names) > 1 else "".join(names)


def csv_text(header: Sequence[str], rows: Iterable[Iterable[object]]) -> str:
    """A CSV file as text; None becomes an empty field. It is safe to show on a terminal."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return printable(text.getvalue())


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table."""
    first, *others = (f"| {' | '.join(cells)} |" for cells in [header, *rows])
    return [first, "|" + "---|" * len(header), *others]
