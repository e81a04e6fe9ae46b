"""The message about an exception: one sentence that says what to do, and a traceback only for an unforeseen exception."""

from __future__ import annotations

import difflib
import logging
import os
import re
import traceback
from collections.abc import Iterable
from pathlib import Path

from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf.errors import InterpolationKeyError, MissingMandatoryValue, OmegaConfBaseException

from varlab.config import quoted, shell_word
from varlab.errors import Stopped, VarlabError, system_refusal

__all__ = ["one_of", "report", "unknown_key", "user_message"]

logger = logging.getLogger(__name__)

_LOST_WORKER = ("TerminatedWorkerError", "BrokenProcessPool")
"""loky's exceptions, by name because loky may not be installed."""

_NO_SHARED_MEMORY = ("</torch_", "shared memory", "Bus error")
"""Texts of torch's errors about memory that processes share."""

_PLUGINS = {"hydra/launcher/joblib": "joblib", "hydra/launcher/varlab_slurm": "slurm"}


def report(error: Exception) -> str:
    """The message about an error; the traceback of an unforeseen one, or of any with VARLAB_DEBUG=1, is logged."""
    if _foreseen(error) is None or os.environ.get("VARLAB_DEBUG", "0") not in ("", "0"):
        logger.error("%s", type(error).__name__, exc_info=error)
    return user_message(error)


def user_message(error: BaseException) -> str:
    """One line: what was wrong and what to do."""
    if isinstance(error, KeyboardInterrupt):
        return "Interrupted: run the same command again to resume."
    return _foreseen(error) or f"unexpected {type(error).__name__}: {' '.join(str(error).split())}".rstrip(": ")


def _foreseen(error: BaseException) -> str | None:
    """The message about an error with a known remedy; None for any other."""
    cause: BaseException | None = error
    # Hydra and Lightning wrap what a constructor or a data loader raised.
    while cause is not None:
        if isinstance(cause, VarlabError | Stopped):
            return " ".join(str(cause).split())
        if _is_out_of_memory(cause):
            remedy = "use trainer.micro_batch=N (the same update in parts), or a smaller batch or model"
            return f"Out of memory ({_first_line(cause)}): {remedy}."
        if _lacks_shared_memory(cause):
            return (
                f"The shared memory of this machine ({_size_of('/dev/shm')}) is too small for the loader processes: run the "
                "same command again with data.workers=0 (workers=0 of pack and index), or with more shared memory (docker "
                "run --shm-size=8g)."
            )
        if isinstance(cause, RuntimeError) and "DataLoader worker (" in str(cause):
            return (
                f"A loader process was killed, perhaps for lack of memory ({_first_line(cause)}): run the same command again, "
                "with fewer processes (data.workers, or workers of pack and index) if memory was short."
            )
        if isinstance(cause, OSError) and (why := system_refusal(cause)):
            place = cause.filename2 or cause.filename
            return f"Could not use {os.fspath(place) if place else 'a file or the current folder'}: {why}"
        if type(cause).__name__ in _LOST_WORKER:
            return (
                "A worker process of the sweep was killed (perhaps for lack of memory), which stopped the sweep. Run the same "
                "command again to finish what is left."
            )
        cause = cause.__cause__
    if isinstance(error, MissingConfigException):
        return _missing_config(error)
    if isinstance(error, OverrideParseException):
        return f"'{error.override}' cannot be read as key=value ({_first_line(error)}){_as_text(error.override)}"
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


def _as_text(argument: str, condition: str = "if the value is text") -> str:
    """The end of a message: how a shell gives an argument of which the whole value is one text."""
    key, equals, value = argument.partition("=")
    return f"; {condition}, write {shell_word(f'{key}={quoted(value)}')}" if equals else ""


def _is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out; torch's own exception is recognised by its name, without an import of torch."""
    return (
        isinstance(error, MemoryError)
        or type(error).__name__ == "OutOfMemoryError"
        or (isinstance(error, RuntimeError) and "can't allocate memory" in str(error))
    )


def _lacks_shared_memory(error: BaseException) -> bool:
    """Whether loader processes had too little of it; their locks lie there, too, and fail by an OSError without a file."""
    if isinstance(error, RuntimeError):
        return any(text in str(error) for text in _NO_SHARED_MEMORY)
    where = {Path(frame.filename).parent.name for frame in traceback.extract_tb(error.__traceback__)[-2:]}
    return isinstance(error, OSError) and error.filename is None and "multiprocessing" in where


def _size_of(folder: str) -> str:
    try:
        size = os.statvfs(folder)
    except OSError:
        return f"{folder} is missing"
    return f"{folder} has {size.f_blocks * size.f_frsize / 1e6:.0f} MB"


def one_of(name: str, options: Iterable[str], prefix: str = "") -> str:
    """The end of a message about an unknown name: the closest known name, and all known names."""
    known = sorted(options)
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{prefix}{near[0]}'? " if near else ""
    return f"{hint}Choose from {', '.join(known)}" if known else "there is nothing to choose from"


def unknown_key(error: BaseException) -> str | None:
    """The unknown key of an override that Hydra refuses; None for any other error."""
    match = re.match(r"Could not override '(.*?)'|Override (\S+?)=\S* looks like a config group", str(error))
    return match and (match[1] or match[2])


def _missing_config(error: MissingConfigException) -> str:
    missing = error.missing_cfg_file or "?"
    if missing in _PLUGINS:
        return f"this launcher is not installed: pip install 'varlab[{_PLUGINS[missing]}]'"
    group, _, name = missing.partition("/")
    if not name:
        return f"conf has no '{group}': {one_of(group, error.options or ())}"
    return f"{group} has no '{name}': {one_of(name, _files(error, group) or error.options or ())}"


def _files(error: MissingConfigException, group: str) -> set[str]:
    """The options of a config group, also those in folders (experiment=digits/judge), which Hydra's list leaves out."""
    folders = [Path(root) / group for root in re.findall(r"path=file://(.+)", str(error))]
    return {str(file.relative_to(folder).with_suffix("")) for folder in folders for file in folder.rglob("*.yaml")}


def _composition(error: HydraException) -> str:
    text = _first_line(error)
    if ambiguous := re.search(r"(?:Ambiguous value for argument|Sweep parameters) '(.*)'\s", str(error)):
        return f"{ambiguous[1]} asks for several runs: add -m{_as_text(ambiguous[1], 'if the comma belongs to it')}"
    if key := unknown_key(error):
        return f"there is no key '{key}' in this configuration"
    if isinstance(error.__cause__, OmegaConfBaseException):
        text = f"{text} ({_first_line(error.__cause__)})"
    return text


def _instantiation(error: InstantiationException) -> str | None:
    """The key whose constructor refused its values, and why; None if the constructor failed in another way."""
    if not isinstance(error.__cause__, TypeError | ValueError | ImportError | AttributeError | OSError | None):
        return None
    key = re.search(r"full_key: (\S+)", str(error))
    return f"{key[1]}: {_first_line(error.__cause__ or error)}" if key else _first_line(error)


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__
