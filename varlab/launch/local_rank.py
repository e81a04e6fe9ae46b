"""What ``varlab.launch.local`` starts: ``python -m varlab.launch.local_rank JOB ALIVE``, one rank of one run.

JOB is the file with the resolved configuration, ALIVE the reading end of a pipe that closes when the starting process
is gone.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
import traceback
from pathlib import Path

from varlab.errors import Stopped
from varlab.files import write_json
from varlab.launch import exits, logs
from varlab.launch.job import execute
from varlab.launch.local import global_rank
from varlab.launch.slurm_attempt import STOPPED
from varlab.launch.user_message import sentence, show_traceback
from varlab.run.directory import RunDirectory

__all__ = ["main"]


def main(job: str, alive: str) -> int:
    """Run the job as the rank that the environment says; an error goes into a file beside the job."""
    threading.Thread(target=_follow, args=(int(alive),), daemon=True).start()
    logs.configure()
    todo = json.loads(Path(job).read_text())
    rank = global_rank()
    directory = RunDirectory(Path(todo["directory"]), rank=rank, held=True)
    directory.resuming = todo["resuming"]
    try:
        outcome = execute(todo["module"], todo["config"], directory)
    except Stopped as stopped:
        write_json(Path(job).with_name(f"{rank}.stopped"), {"number": stopped.number, "where": stopped.where})
        sys.stderr.flush()
        os._exit(STOPPED)
    except Exception as error:
        text = sentence(error)
        if text is None or show_traceback():
            traceback.print_exc()
        record = {"rank": rank, "time": time.time(), "error": text or f"unexpected {type(error).__name__}: {error}"}
        write_json(Path(job).with_name(f"{rank}.error"), record)
        sys.stderr.flush()
        os._exit(1)  # at once: leaving in order would wait for ranks that wait for this one
    directory.keep(outcome)
    exits.group()
    return 0


def _follow(alive: int) -> None:
    """End with the process that started this one: it holds the directory's lock, and nobody else would end us."""
    os.read(alive, 1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
