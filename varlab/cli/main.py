"""The console script: finds the command, puts its arguments into Hydra's words, and hands over to the application.

Standard library only until a command is known: `varlab --help` answers at once.
"""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping, Sequence

from varlab.cli.command_table import COMMANDS, Command
from varlab.errors import Stopped

__all__ = ["main"]

INTERRUPTED = 130  # what a shell calls death by Ctrl-C


def main(argv: Sequence[str] | None = None, commands: Mapping[str, Command] = COMMANDS) -> int:
    """Run ``varlab ARGV`` and return its exit code: 0 done, 1 failed, 2 not understood, 130 interrupted, 128 and
    more for a signal."""
    try:
        code = _dispatch(list(sys.argv[1:] if argv is None else argv), commands)
        sys.stdout.flush()
    except BrokenPipeError:  # `varlab --help | head`: whoever read us has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    return code


def _dispatch(arguments: list[str], commands: Mapping[str, Command]) -> int:
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(usage(commands))
        return 0 if arguments else 2
    if arguments[0] in ("-V", "--version", "version"):
        from varlab import __version__

        print(f"varlab {__version__}")
        return 0
    command = commands.get(arguments[0])
    if command is None:
        print(_unknown(arguments[0], commands), file=sys.stderr)
        return 2
    return _run(command, arguments[1:])


def _run(command: Command, arguments: list[str]) -> int:
    from varlab.cli.app import run_app

    try:
        return run_app(command, arguments)
    except KeyboardInterrupt:
        print("varlab: interrupted; the same command again goes on from its last checkpoint", file=sys.stderr)
        return INTERRUPTED
    except Stopped as stopped:
        print(f"varlab: {stopped}", file=sys.stderr)
        return 128 + stopped.number


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
            "varlab COMMAND --help  lists a command's keys and choices",
            "-m                     one run for every combination of the values with commas",
            "out=DIR                where a run lands (default runs/<name>/<what was asked>); asking again resumes it",
            "varlab --version       the version",
        ]
    )


def _unknown(name: str, commands: Mapping[str, Command]) -> str:
    near = difflib.get_close_matches(name, commands, n=1)
    hint = f"did you mean '{near[0]}'?" if near else f"the commands are {', '.join(commands)}."
    return f"varlab: there is no command '{name}': {hint}"


if __name__ == "__main__":
    sys.exit(main())
