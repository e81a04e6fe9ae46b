"""``make fuzz``: days in the life of somebody who has pictures, each with other files, commands and faults.

``python -m tests.fuzz [seed=0] [cases=220] [first=0] [case=N] [processes=2] [strict=0] [package=DIR]``

It prints the kinds of worlds and of actions with their outcomes, and for each fault the command that repeats its day. Exit
code 1 if a result was wrong, a sentence was missing, samples were lost, a command hung or a file was left half written.
package: the folder of another version of varlab. strict: 1 judges as if everything that is planned worked.
"""

from __future__ import annotations

import os
import sys

_DEFAULTS = {"seed": "0", "cases": "220", "first": "0", "processes": "2", "strict": "0"}


def main(words: list[str]) -> int:
    """The exit code."""
    asked = _DEFAULTS | dict(word.split("=", 1) for word in words)
    if "package" in asked:
        sys.path.insert(0, asked["package"])
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    from tests.fuzz.table import run_cases, run_one

    if "case" in asked:
        return run_one(int(asked["case"]), int(asked["seed"]), strict=asked["strict"] == "1")
    cases = range(int(asked["first"]), int(asked["first"]) + int(asked["cases"]))
    return run_cases(cases, int(asked["seed"]), processes=int(asked["processes"]), strict=asked["strict"] == "1")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
