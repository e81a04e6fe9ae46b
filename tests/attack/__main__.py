"""``make attack``: thousands of damaged and hostile files, each read by the package's own readers.

``python -m tests.attack [seed=0] [processes=2] [share=1.0] [format=NAME] [case=N]``

It prints a line for each format, and how to run each failed case alone. Exit code 1 if a case was read wrong without a word,
hung, executed something, wrote outside of its folder or ended in a traceback.
"""

from __future__ import annotations

import sys
import tempfile
import time
from pathlib import Path

from tests.attack.formats import FORMATS
from tests.attack.processes import run_all
from tests.attack.trial import BAD, KINDS, Format, Result, Trial

_COMMAND = "python -m tests.attack seed={seed} format='{name}' case={number}"
_SHOWN = 40  # failures


def main(arguments: list[str]) -> int:
    """The exit code."""
    asked = {"seed": "0", "processes": "2", "share": "1"} | dict(word.split("=", 1) for word in arguments)
    forms = [form for form in FORMATS if asked.get("format", form.name) == form.name]
    if not forms:
        print("There is no such format:", ", ".join(form.name for form in FORMATS))
        return 1
    seed = int(asked["seed"])
    if "case" in asked:
        return _one(forms[0], int(asked["case"]), seed)
    cases = [(form, number) for form in forms for number in range(round(form.cases * float(asked["share"])))]
    start = time.monotonic()
    results = run_all(cases, seed=seed, processes=int(asked["processes"]))
    _print_table(forms, results)
    failed = [(name, number, result) for (name, number), result in results.items() if result.kind in BAD]
    for name, number, result in failed[:_SHOWN]:
        print(f"\n{result.kind}: {_COMMAND.format(seed=seed, name=name, number=number)}\n{result.detail[-3000:]}")
    print(f"\n{len(results)} cases in {time.monotonic() - start:.0f} s, seed {seed}: {len(failed)} failed")
    return int(bool(failed))


def _one(form: Format, number: int, seed: int) -> int:
    """Run one case, and leave its folder."""
    folder = Path(tempfile.mkdtemp(prefix="attack-"))
    result = Trial(form, folder).run(number, seed)
    print(f"{form.name} {number}: {result.kind}\n{result.detail}\nits files: {folder}/a/b/case")
    return int(result.kind in BAD)


def _print_table(forms: list[Format], results: dict[tuple[str, int], Result]) -> None:
    heads = ("cases", *KINDS)
    width = max(len(form.name) for form in forms) + 2
    print(" " * width + "".join(f"{head:>12}" for head in heads))
    total = dict.fromkeys(heads, 0)
    for form in forms:
        kinds = [result.kind for (name, _), result in results.items() if name == form.name]
        row = {"cases": len(kinds)} | {kind: kinds.count(kind) for kind in KINDS}
        total = {head: total[head] + row[head] for head in heads}
        print(f"{form.name:{width}}" + "".join(f"{row[head]:>12}" for head in heads))
    print(f"{'all':{width}}" + "".join(f"{total[head]:>12}" for head in heads))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
