"""A command as a Hydra application over ``conf/<command>.yaml``.

``hydra.main`` would print its own errors, and under ``-m`` the first failed job would hide the results of the others. So
Hydra's application object is called directly. Hydra writes no files of its own beside a run, and configures no logging.
"""

from __future__ import annotations

import argparse
import functools
import logging
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from importlib.resources import as_file, files
from pathlib import Path
from typing import TypeAlias

from hydra import version as hydra_version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from varlab.cli.alternatives import LayeredLoader, read_alternatives
from varlab.cli.arguments import rewrite
from varlab.cli.command_table import Command
from varlab.cli.help_page import choices, help_page
from varlab.config import conf_dir
from varlab.errors import Stopped, VarlabError
from varlab.launch import sweep, terminal
from varlab.launch.job import refusal, run_job
from varlab.launch.sweep import PlannedJob, compose
from varlab.launch.user_message import one_of, report, unknown_key, user_message
from varlab.run.provenance import BRIEF
from varlab.run.trust import named_targets

__all__ = ["conf_dir", "run_app"]

logger = logging.getLogger(__name__)

_Reason: TypeAlias = tuple[tuple[str, ...], str]
"""The overrides of a job, and why it failed."""

FAILED = 1
INTERRUPTED = 130  # a shell's exit code for Ctrl-C
_HYDRA_SETTINGS = (
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
    "hydra.output_subdir=null",
    "hydra.run.dir=.",
    "hydra.sweep.subdir=.",
)


def run_app(command: Command, arguments: Sequence[str]) -> int:
    """Run a command with its command-line arguments; returns the exit code. Every error is printed on standard error."""
    terminal.configure()
    try:
        args = _parse(command, arguments)
        if args.brief:
            terminal.leave_out_details()
        with _hydra(command, args.config_dir) as hydra:
            return _act(hydra, command, args)
    except Exception as error:
        message, code = report(error), FAILED
    except (KeyboardInterrupt, Stopped) as stop:
        message, code = user_message(stop), 128 + stop.number if isinstance(stop, Stopped) else INTERRUPTED
    terminal.say(f"varlab {command.name}: {message}", error=True)
    return code


def _parse(command: Command, arguments: Sequence[str]) -> argparse.Namespace:
    parser = get_args_parser()
    parser.prog = f"varlab {command.name}"
    parser.add_argument(BRIEF, action="store_true")
    args: argparse.Namespace = parser.parse_intermixed_args(list(arguments))
    roots = [conf_dir(), *([Path(args.config_dir)] if args.config_dir else [])]
    args.overrides = rewrite(
        args.overrides,
        command=command.name,
        positional=command.positional,
        multirun=args.multirun,
        renamed=command.renamed,
        is_group=lambda key: any((root / key).is_dir() for root in roots),
    )
    args.overrides = [_opened(override, command.open_groups) for override in args.overrides]
    if args.config_path or args.experimental_rerun or args.shell_completion:
        raise VarlabError(
            "--config-path, --experimental-rerun and --shell-completion do not work here: use --config-dir."
        )
    return args


def _opened(override: str, groups: Sequence[str]) -> str:
    """``trainer.key=value`` with a prefix that also adds a new key, if this group takes keys that its files do not list."""
    return f"++{override}" if override.startswith(tuple(f"{group}." for group in groups)) else override


@contextmanager
def _hydra(command: Command, config_dir: str | None) -> Iterator[Hydra]:
    hydra_version.setbase("1.3")
    search_path = create_config_search_path(f"file://{conf_dir()}")
    if config_dir is not None:
        _add_config_dir(search_path, Path(config_dir))
        sys.path.append(str(Path(config_dir).resolve()))
    try:
        hydra = Hydra.create_main_hydra2(task_name=command.name, config_search_path=search_path)
        hydra.config_loader = LayeredLoader(
            search_path, read_alternatives(conf_dir() / "alternatives.yaml", command.name)
        )
        yield hydra
    finally:
        GlobalHydra.instance().clear()
        if config_dir is not None:
            sys.path.remove(str(Path(config_dir).resolve()))


def _add_config_dir(search_path: ConfigSearchPath, folder: Path) -> None:
    if not folder.is_dir():
        raise VarlabError(f"--config-dir {folder} is not a folder: name a folder with YAML files.")
    before_schemas = SearchPathQuery(provider="schema")
    search_path.prepend(provider="command-line", path=f"file://{folder.resolve()}", anchor=before_schemas)


def _act(hydra: Hydra, command: Command, args: argparse.Namespace) -> int:
    name = args.config_name or command.name
    overrides = [*_HYDRA_SETTINGS, *args.overrides]
    with _suggestions(hydra, command, name, overrides):
        if args.help:
            terminal.say(help_page(hydra, command, name, overrides))
        elif args.hydra_help:
            hydra.hydra_help(config_name=name, args_parser=get_args_parser(), args=args)
        elif args.cfg:
            hydra.show_cfg(name, overrides, args.cfg, args.package, args.resolve)
        elif args.info:
            hydra.show_info(args.info, config_name=name, overrides=overrides)
        else:
            return _run_jobs(hydra, command, name, overrides, args.multirun)
    return 0


def _run_jobs(hydra: Hydra, command: Command, name: str, overrides: list[str], multirun: bool) -> int:
    """Run the one job, or all jobs of the sweep. Returns the exit code: FAILED if any job failed."""
    job = functools.partial(run_job, command, imports=tuple(sys.path), trusted=_trusted(hydra))
    if not multirun:
        _check_launch(hydra, name, overrides)
        done = hydra.run(name, job, [*overrides, "hydra.mode=RUN"])
        results = [done.return_value]
    else:
        jobs = sweep.plan(hydra, command.name, name, _HYDRA_SETTINGS, overrides[len(_HYDRA_SETTINGS) :])
        if refused := _refused(command, jobs):
            _say_why(refused, len(jobs), "cannot begin, so none was started")
            return FAILED
        folders = sweep.begin(jobs)
        place = sweep.notes_folder(hydra, command.name, name, overrides, folders)
        try:
            batches = hydra.multirun(name, job, [place, *overrides, "hydra.mode=MULTIRUN"])
        finally:
            # A lost job could not update the table itself.
            for folder in folders:
                sweep.refresh(folder)
        results = [done.return_value for batch in batches for done in batch]
    failed = [(result.overrides, result.error) for result in results if result.error is not None]
    if multirun:
        _say_why(failed, len(results), "failed")
    elif failed:
        terminal.say(f"varlab {command.name}: {failed[0][1]}", error=True)
    return FAILED if failed else 0


def _refused(command: Command, jobs: Sequence[PlannedJob]) -> list[_Reason]:
    """The jobs of a sweep that cannot begin. One of another kind may need the runs of others, so there all must be refused."""
    found = [(job.overrides, refusal(command, job.config, job.path)) for job in jobs]
    refused = [(overrides, why) for overrides, why in found if why is not None]
    alike = len({str(job.config.get("kind")) for job in jobs}) == 1
    return refused if alike or len(refused) == len(jobs) else []


def _trusted(hydra: Hydra) -> frozenset[str]:
    """The ``_target_``s that the user's ``--config-dir`` and installed plug-ins name; a record may name them, too."""
    names: set[str] = set()
    for entry in hydra.config_loader.get_search_path().get_path():
        scheme, _, place = entry.path.partition("://")
        if entry.provider in ("hydra", "main", "schema") or scheme not in ("file", "pkg"):
            continue
        with as_file(files(place)) if scheme == "pkg" else nullcontext(Path(place)) as folder:
            names |= named_targets(folder)
    return frozenset(names)


def _check_launch(hydra: Hydra, name: str, overrides: list[str]) -> None:
    """Raises VarlabError for a launcher without ``-m``: Hydra would silently run the job in this process."""
    asked = [word for word in overrides if word.partition("=")[0].lstrip("+") == "launch"]
    if asked and compose(hydra, name, overrides).hydra.runtime.choices["hydra/launcher"] != "basic":
        raise VarlabError(f"{asked[-1]} is for sweeps (also of one job): add -m. Without it, the job would run here.")


def _say_why(failed: Sequence[_Reason], count: int, what: str) -> None:
    """Say which of ``count`` jobs of a sweep failed, and each reason once."""
    reasons: dict[str, list[str]] = {}
    for overrides, why in failed:
        reasons.setdefault(why, []).append(" ".join(overrides) or "default")
    if len(failed) == count > 1 and len(reasons) == 1:
        terminal.say(f"{count} of {count} runs {what}, all for one reason: {failed[0][1]}", error=True)
    elif failed:
        lines = [f"  {', '.join(names)}: {why}" for why, names in reasons.items()]
        terminal.say("\n".join([f"{len(failed)} of {count} runs {what}:", *lines]), error=True)


@contextmanager
def _suggestions(hydra: Hydra, command: Command, name: str, overrides: list[str]) -> Iterator[None]:
    """Turn Hydra's error about an unknown key into one that lists the known keys, or says what brings this one."""
    try:
        yield
    except Exception as error:
        key = unknown_key(error)
        if key is None:
            raise
        hint = command.needs.get(key)
        if hint and not any(word.startswith(hint.partition("=")[0]) for word in overrides):
            raise VarlabError(f"{key}= needs {hint} beside it: varlab {command.name} {hint} {key}=…") from error
        raise VarlabError(f"there is no key '{key}': {_neighbours(hydra, name, overrides, key)}") from error


def _neighbours(hydra: Hydra, name: str, overrides: list[str], key: str) -> str:
    """The known keys on the level of an unknown one, from the configuration without that override."""
    groups = [o for o in overrides if "/" in o.partition("=")[0] or "." not in o.partition("=")[0]]
    kept = [o for o in groups if o.partition("=")[0].lstrip("+~") != key]
    try:
        cfg = compose(hydra, name, kept, RunMode.MULTIRUN)
    except Exception:
        # The overrides have another error, too.
        return "see --help"
    parent, _, last = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    if not isinstance(node, DictConfig):
        return f"'{parent}' has no keys"
    names = {str(k) for k in node} - {"hydra"} | (set() if parent else set(choices(cfg)))
    return one_of(last, names, prefix=f"{parent}." if parent else "")
