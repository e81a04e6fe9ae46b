"""``varlab start``: from a folder of pictures to samples, scores and a report."""

from __future__ import annotations

from pathlib import Path

from varlab.config import Config
from varlab.run.directory import RunDirectory
from varlab.run.provenance import command_line
from varlab.start.session import Session

__all__ = ["run"]


def run(config: Config, directory: RunDirectory) -> Config:
    """Run every step that is not done yet, each as a command of its own. The same command resumes."""
    out = Path(config["out"] or Path("runs") / Path(config["folder"]).resolve().name)
    session = Session(config, out, command_line())
    session.run()
    return {}
