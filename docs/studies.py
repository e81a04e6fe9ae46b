"""A hook of MkDocs: the studies of ``experiments/`` become pages of the site, and links from and to them are adapted."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_FOLDER = "experiments"


def on_files(files: Files, config: MkDocsConfig) -> Files:
    root = Path(config.config_file_path).parent
    for file in sorted(file for ending in ("md", "png") for file in root.glob(f"{_FOLDER}/*/*.{ending}")):
        files.append(File.generated(config, file.relative_to(root).as_posix(), abs_src_path=str(file)))
    return files


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    if page.file.src_uri.startswith(_FOLDER):
        lines = re.sub(r"(?<=\S)\n(?=\*\*[A-Z])", "  \n", markdown)  # **Question.** and **Cost.** on lines of their own
        return re.sub(r"\]\((?:\.\./)+docs/", "](../../", lines)
    return markdown.replace(f"](../{_FOLDER}/", f"]({_FOLDER}/")
