"""The console script. ``varlab train`` calls ``run(config, directory)`` of ``varlab/cli/commands/train.py``.

config: ``conf/train.yaml`` with the command's arguments, composed by Hydra (``varlab/cli/app.py``). directory: the run's
(``varlab/launch/job.py``). Only the standard library is imported until a command runs, so ``--help`` is fast.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping, Sequence

from varlab.cli.command_table import COMMANDS, Command
from varlab.errors import system_refusal
from varlab.launch.terminal import open_closed_streams, say

__all__ = ["main"]


def main(argv: Sequence[str] | None = None, commands: Mapping[str, Command] = COMMANDS) -> int:
    """Run ``varlab ARGV`` and return its exit code.

    0: success. 1: failure. 2: no such command. 130: interrupted. 128 + N: stopped by signal N.
    """
    open_closed_streams()
    try:
        code = _dispatch(list(sys.argv[1:] if argv is None else argv), commands)
        sys.stdout.flush()
    except OSError as error:
        # Python would try to write the rest when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # `varlab --help | head` closes our output early
            return 0
        say(f"varlab: Could not write the output: {system_refusal(error) or error}", error=True)
        return 1
    return code


def _dispatch(arguments: list[str], commands: Mapping[str, Command]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        say(usage(commands))
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version", "version"):
        from varlab import __version__

        say(f"varlab {__version__}")
        return 0
    if sys.getfilesystemencoding() != "utf-8" and any("\udc80" <= c <= "\udcff" for c in "".join(arguments)):
        say(f"varlab: {sys.getfilesystemencoding()} has not all of these letters: set PYTHONUTF8=1.", error=True)
        return 1
    command = commands.get(arguments[0])
    if command is None:
        say(_unknown(arguments[0], commands), error=True)
        return 2
    from varlab.cli.app import run_app

    return run_app(command, arguments[1:])


def usage(commands: Mapping[str, Command]) -> str:
    """The text of ``varlab --help``."""
    width = max(map(len, commands))
    return "\n".join(
        [
            "varlab: an open laboratory for visual autoregression",
            "",
            "usage: varlab COMMAND [key=value …]",
            "",
            "commands:",
            *(f"  {command.name:<{width}}  {command.purpose}" for command in commands.values()),
            "",
            "examples:",
            *(f"  {command.example}" for command in commands.values()),
            "",
            "varlab COMMAND --help  explains a command's choices and keys, and lists its experiments",
            "-m                     one run for every combination of values: order=next_scale,raster seed=0,1",
            "out=DIR                the run's directory (default runs/<name>/<overrides>); the same command resumes the run",
            "varlab --version       the version",
        ]
    )


def _unknown(name: str, commands: Mapping[str, Command]) -> str:
    near = difflib.get_close_matches(name, commands, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"the commands are {', '.join(commands)}."
    return f"varlab: unknown command '{name}': {hint}"


if __name__ == "__main__":
    sys.exit(main())
