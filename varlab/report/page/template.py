"""The templates of pages, and their common stylesheet."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from varlab.files import printable
from varlab.report.page.palette import PALETTE

__all__ = ["render_template"]

_HERE = Path(__file__).parent


def render_template(name: str, **values: object) -> str:
    """A page as text, from the template of this name; it also gets the stylesheet as ``css``."""
    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return printable(environment.get_template(name).render(css=Markup(_stylesheet()), **values))


def _stylesheet() -> str:
    light, dark = ("".join(f"--c{i}:{pair[tone]};" for i, pair in enumerate(PALETTE)) for tone in (0, 1))
    text = (_HERE / "style.css").read_text(encoding="utf-8")
    return f":root{{{light}}}@media(prefers-color-scheme:dark){{:root{{{dark}}}}}{text}"
