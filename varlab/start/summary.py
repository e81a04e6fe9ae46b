"""What a start says: at its beginning, its plan, and at its end what came of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from varlab.config import Config, shell_word
from varlab.errors import VarlabError
from varlab.run.record import read_record
from varlab.start.agenda import Agenda, Phase
from varlab.start.history import History
from varlab.start.machine import Machine
from varlab.start.steps import tokenizer_of

__all__ = ["opening", "plan_table", "result"]

_FEW_MINUTES = 10


def opening(config: Config, out: Path, machine: Machine, *, resumes: bool) -> str:
    """The first words: what will happen, and how to stop."""
    line = f"{config['folder']} → {out}: {config['size']}×{config['size']} pixels, {config['minutes']:g} minutes on {machine}."
    if resumes:
        return f"{line} It resumes: finished steps are skipped."
    return (
        f"{line}\nFirst it packs the pictures, trains a judge and measures a few updates of everything. Then it shows a plan.\n"
        "You may stop it with Ctrl-C at any time: the same command resumes."
    )


def plan_table(phases: Sequence[Phase], is_done: Callable[[Phase], bool], history: History, *, minutes: float) -> str:
    """The steps with their images and minutes."""
    rows = [("step", "images of", "", "minutes")]
    for phase in phases:
        names = ", ".join(step.name.rpartition("/")[2] for step in phase.steps if step.images)
        rows.append((phase.title, names, phase.images, "done" if is_done(phase) else _minutes(phase.seconds)))
    total = history.spent + sum(phase.seconds for phase in phases if not is_done(phase))
    rows.append(("all together", "", "", _minutes(total)))
    lines = ["", "The plan:", *_columns(rows)]
    if total > 66 * minutes or minutes < _FEW_MINUTES:
        lines.append(
            f"{minutes:g} minutes are few: expect blurred pictures. 30 minutes are a good beginning at 32 pixels."
        )
    return "\n".join(lines)


def result(config: Config, out: Path, history: History, agenda: Agenda) -> str:
    """What came of it: scores beside those of trivial baselines, where the pictures are, what to do next."""
    judge = _outcome(out / "judge").get("held_out", {})
    scores = {order: _outcome(out / "scores" / "generator" / order).get("scores", {}) for order in agenda.orders}
    tokens = {
        order: _outcome(out / "scores" / "tokenizer" / tokenizer_of(order)).get("scores", {}) for order in agenda.orders
    }
    rows: list[Sequence[str]] = [("", *agenda.orders, "to compare with")]
    if any("accuracy" in values for values in scores.values()):
        beside = (
            f"{judge.get('majority', 0):.0%} always the largest class, {judge.get('accuracy', 0):.0%} real pictures"
        )
        rows.append(("judge sees the class", *(_number(scores[o], "accuracy", ".0%") for o in agenda.orders), beside))
    rows.append(("FID ratio", *(_number(scores[o], "fid_ratio", ".2f") for o in agenda.orders), "1 real pictures"))
    rows.append(
        (
            "PSNR of the tokenizer",
            *(_number(tokens[o], "psnr", ".1f") + " dB" for o in agenda.orders),
            "more is sharper",
        )
    )
    pictures = [str(out / "samples" / order / "pictures" / "samples.png") for order in agenda.orders]
    return "\n".join(
        [
            f"\nFinished after {_minutes(history.spent)} minutes.",
            "",
            *_columns(rows),
            "",
            "Look at:",
            *(f"  {path}" for path in (*pictures, out / "report.html")),
            "",
            "Next:",
            *(f"  {line}" for line in _next(config, out, agenda)),
        ]
    )


def _next(config: Config, out: Path, agenda: Agenda) -> list[str]:
    """Commands to go on with."""
    generator, more = out / "generator" / agenda.orders[0], f"{4 * config['minutes']:g}"
    again = f"varlab start {shell_word(str(config['folder']))} size={config['size']} minutes={more} out={out}-{more}"
    return [
        f"varlab sample {generator} n=64 seed=1 out={out}/samples/more     # other samples",
        f"{again}     # sharper pictures, in more time",
        f"bash {out}/commands.sh     # the steps, to read, copy and change",
    ]


def _outcome(run: Path) -> Config:
    """What a command returned; empty where its record cannot be read."""
    try:
        return read_record(run).outcome.values
    except VarlabError:
        return {}


def _number(values: Config, key: str, form: str) -> str:
    return format(values[key], form) if isinstance(values.get(key), int | float) else "–"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f}"


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
