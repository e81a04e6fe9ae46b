"""``commands.sh``: the steps of a start as a script that a person can read, edit and run."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from varlab.config import shell_word
from varlab.files import write_text
from varlab.start.agenda import Phase
from varlab.start.steps import Step

__all__ = ["write_commands"]

_HEAD = """\
#!/usr/bin/env bash
# The steps of: {asked}
# Each is an ordinary command, and skips itself once it is finished. Run them all: bash {file}
# varlab start writes this file again: copy it before you edit it.
set -euo pipefail
cd {folder}
command -v varlab >/dev/null || varlab() {{ {python} -m varlab.cli.main "$@"; }}
trap 'kill $(jobs -p) 2>/dev/null || true' EXIT # one that fails ends those beside it
"""


def write_commands(file: Path, asked: str, phases: Sequence[Phase]) -> None:
    """Write the script. asked: the command that made it."""
    head = _HEAD.format(
        asked=asked, file=shell_word(str(file)), folder=shell_word(str(Path.cwd())), python=shell_word(sys.executable)
    )
    blocks = [f"\n# {_title(phase)}\n{_together(phase.steps)}" for phase in phases]
    write_text(file, head + "".join(blocks))


def _title(phase: Phase) -> str:
    minutes = f", about {phase.seconds / 60:.1f} minutes" if phase.seconds else ""
    return f"{phase.title}{', at the same time' if len(phase.steps) > 1 else ''}{minutes}"


def _together(steps: Sequence[Step]) -> str:
    """The commands of a round: all but the last in the background, then a wait for each."""
    *beside, last = [step.command for step in steps]
    background = [f"{command} & beside{i}=$!\n" for i, command in enumerate(beside)]
    return "".join([*background, f"{last}\n", *(f"wait $beside{i}\n" for i in range(len(beside)))])
