"""From exceptions to sentences. What a person can mend gets one sentence; what only we can mend keeps its traceback."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf.errors import InterpolationKeyError, MissingMandatoryValue, OmegaConfBaseException

from varlab.errors import Stopped, VarlabError

__all__ = ["one_of", "sentence", "show_traceback", "unknown_key"]

_LOST_WORKER = ("TerminatedWorkerError", "BrokenProcessPool")  # of loky, by name: it may not be installed
_PLUGINS = {"hydra/launcher/joblib": "joblib", "hydra/launcher/varlab_slurm": "slurm"}


def show_traceback() -> bool:
    """VARLAB_DEBUG=1 keeps the traceback of every error."""
    return os.environ.get("VARLAB_DEBUG", "0") not in ("", "0")


def sentence(error: BaseException) -> str | None:
    """What was wrong, on one line; None for an error that nobody foresaw."""
    cause: BaseException | None = error
    while cause is not None:  # Hydra and Lightning wrap what a constructor or a loader raised
        if isinstance(cause, VarlabError | Stopped):
            return _line(str(cause))
        if _is_out_of_memory(cause):
            remedy = "try trainer.micro_batch=N (the same update in parts), or a smaller batch or model"
            return f"Out of memory ({_first_line(cause)}): {remedy}."
        if type(cause).__name__ in _LOST_WORKER:
            return (
                "a process of the sweep was killed (for want of memory?), and joblib ended the others: the same command again "
                "runs only what is not finished."
            )
        cause = cause.__cause__
    if isinstance(error, MissingConfigException):
        return _missing_config(error)
    if isinstance(error, OverrideParseException):
        return f"'{error.override}' cannot be read as key=value ({_first_line(error)})"
    if isinstance(error, InstantiationException):
        return _instantiation(error)
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} has no value: give one with {error.full_key}=…"
    if isinstance(error, InterpolationKeyError):
        return f"{error.full_key}: {_first_line(error)}"
    if isinstance(error, HydraException):
        return _composition(error)
    if isinstance(error, OmegaConfBaseException):
        return f"{error.full_key}: {_first_line(error)}" if error.full_key else _first_line(error)
    return None


def _is_out_of_memory(error: BaseException) -> bool:
    """Told by name: torch, which raises most of them, is not imported for this."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


def one_of(name: str, options: Iterable[str], prefix: str = "") -> str:
    """The end of a sentence about a name that does not exist: the nearest that does, and all of them."""
    known = sorted(options)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{prefix}{near[0]}'? " if near else ""
    return f"{hint}There is {', '.join(known)}" if known else "there is nothing to choose from"


def unknown_key(error: BaseException) -> str | None:
    """The key of an override that the configuration does not have; None if the error is about something else."""
    match = re.match(r"Could not override '(.*?)'", str(error)) or re.match(
        r"Override (\S+?)=\S* looks like a config group", str(error)
    )
    return match[1] if match else None


def _missing_config(error: MissingConfigException) -> str:
    missing = error.missing_cfg_file or "?"
    if missing in _PLUGINS:
        return f"this launcher is not installed: pip install 'varlab[{_PLUGINS[missing]}]'"
    group, _, name = missing.partition("/")
    if not name:
        return f"conf has no '{group}': {one_of(group, error.options or ())}"
    return f"{group} has no '{name}': {one_of(name, _files(error, group) or error.options or ())}"


def _files(error: MissingConfigException, group: str) -> set[str]:
    """A group's files, those in its folders too (experiment=digits/judge), which Hydra's own list leaves out."""
    folders = [Path(root) / group for root in re.findall(r"path=file://(.+)", str(error))]
    return {str(file.relative_to(folder).with_suffix("")) for folder in folders for file in folder.rglob("*.yaml")}


def _composition(error: HydraException) -> str:
    text = _first_line(error)
    if ambiguous := re.search(r"Ambiguous value for argument '(.*)'\s", str(error)):
        return f"{ambiguous[1]} asks for several runs: add -m (or quote the value, where the comma belongs to it)"
    if key := unknown_key(error):
        return f"there is no key '{key}' in this configuration"
    if isinstance(error.__cause__, OmegaConfBaseException):
        text = f"{text} ({_first_line(error.__cause__)})"
    return text


def _instantiation(error: InstantiationException) -> str | None:
    """A constructor refused its values: whose, and what it said. None where it broke down in some other way."""
    if not isinstance(error.__cause__, TypeError | ValueError | ImportError | AttributeError | OSError | None):
        return None
    key = re.search(r"full_key: (\S+)", str(error))
    said = _first_line(error.__cause__) if error.__cause__ is not None else _first_line(error)
    return f"{key[1]}: {said}" if key else _first_line(error)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def _line(text: str) -> str:
    return " ".join(text.split())
