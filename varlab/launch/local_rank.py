"""One rank that ``varlab.launch.local`` starts: ``python -m varlab.launch.local_rank JOB PIPE``.

JOB is the file with the resolved configuration. PIPE is the read end of a pipe that closes when the starting process ends.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from pathlib import Path

from varlab.config import Config
from varlab.errors import Stopped, VarlabError
from varlab.json_file import read_json, write_sealed_json
from varlab.launch import terminal
from varlab.launch.environment import global_rank, import_from
from varlab.launch.exits import FAILED, STOPPED, exit_now, leave_process_group
from varlab.launch.job import execute
from varlab.launch.user_message import report
from varlab.run.directory import RunDirectory

__all__ = ["main"]


def main(job: str, pipe: str) -> int:
    """Run the job as one rank. An error goes into a file beside the job."""
    threading.Thread(target=_end_with_starter, args=(int(pipe),), daemon=True).start()
    terminal.configure()
    rank = global_rank()
    try:
        _run(read_json(Path(job)), rank)
    except Stopped as stopped:
        _note(Path(job).with_name(f"{rank}.stopped"), {"number": stopped.number, "where": stopped.where})
        exit_now(STOPPED)
    except KeyboardInterrupt:
        exit_now(FAILED)  # the starting process says it
    except Exception as error:
        note = {"rank": rank, "time": time.time(), "error": report(error)}
        _note(Path(job).with_name(f"{rank}.error"), note)
        exit_now(FAILED)
    leave_process_group()
    return 0


def _run(job: Config, rank: int) -> None:
    import_from(job["imports"])
    directory = RunDirectory(Path(job["directory"]), rank=rank, held=True)
    directory.resuming = job["resuming"]
    directory.keep(execute(job["module"], job["config"], directory))


def _note(file: Path, note: Config) -> None:
    """Write how this rank ended; say it, where the disk refuses that, too."""
    try:
        write_sealed_json(file, note)
    except VarlabError:
        terminal.say(f"{file.stem}: {note}", error=True)


def _end_with_starter(pipe: int) -> None:
    """End when the starting process has ended: it held the directory's lock, and nobody else would end this rank."""
    os.read(pipe, 1)
    os._exit(FAILED)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
