"""A command as a Hydra application over ``conf/<command>.yaml``.

Hydra's application object is called directly rather than through ``hydra.main``: its errors then reach us as
exceptions, to be said in a sentence, and under ``-m`` so do the results of all jobs, of which a failed one must not hide
the others. Hydra writes none of its own files beside a run and configures no logging.
"""

from __future__ import annotations

import argparse
import functools
import logging
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from hydra import version as hydra_version
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path, get_args_parser
from hydra.core.config_search_path import ConfigSearchPath, SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from varlab.cli.arguments import rewrite
from varlab.cli.command_table import Command
from varlab.config import Config
from varlab.errors import VarlabError
from varlab.launch import logs, sweep
from varlab.launch.job import JobResult, run_job
from varlab.launch.user_message import one_of, sentence, show_traceback, unknown_key

__all__ = ["conf_dir", "run_app"]

logger = logging.getLogger(__name__)

FAILED = 1
_HYDRA_SETTINGS = (
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
    "hydra.output_subdir=null",
    "hydra.run.dir=.",
    "hydra.sweep.dir=runs/.hydra",
    "hydra.sweep.subdir=.",
)


def conf_dir() -> Path:
    """The configuration that belongs to this code: inside an installed package, beside it in a checkout."""
    package = Path(__file__).resolve().parents[1]
    inside, beside = package / "conf", package.parent / "conf"
    return inside if inside.is_dir() else beside


def run_app(command: Command, arguments: Sequence[str]) -> int:
    """Run a command with its command-line arguments; returns the exit code. Every error is said on standard error."""
    logs.configure()
    try:
        args = _parse(command, arguments)
        with _hydra(command, args.config_dir) as hydra:
            return _act(hydra, command, args)
    except Exception as error:
        text = sentence(error)
        if text is None or show_traceback():
            traceback.print_exc()
        print(f"varlab {command.name}: {text or f'unexpected {type(error).__name__}: {error}'}", file=sys.stderr)
        return FAILED


def _parse(command: Command, arguments: Sequence[str]) -> argparse.Namespace:
    parser = get_args_parser()
    parser.prog = f"varlab {command.name}"
    roots = [conf_dir(), *map(Path, _config_dirs(arguments))]
    rewritten = rewrite(
        arguments,
        command=command.name,
        positional=command.positional,
        renamed=command.renamed,
        is_group=lambda key: any((root / key).is_dir() for root in roots),
    )
    args: argparse.Namespace = parser.parse_intermixed_args(rewritten)
    if args.config_path or args.experimental_rerun or args.shell_completion:
        raise VarlabError(
            "--config-path, --experimental-rerun and --shell-completion do not work here; see --config-dir"
        )
    return args


def _config_dirs(arguments: Sequence[str]) -> list[str]:
    """What follows --config-dir, before Hydra's parser sees it."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--config-dir", "-cd", action="append", default=[])
    return list(parser.parse_known_args(list(arguments))[0].config_dir)


@contextmanager
def _hydra(command: Command, config_dir: str | None) -> Iterator[Hydra]:
    hydra_version.setbase("1.3")
    search_path = create_config_search_path(f"file://{conf_dir()}")
    if config_dir is not None:
        _add_config_dir(search_path, Path(config_dir))
    try:
        yield Hydra.create_main_hydra2(task_name=command.name, config_search_path=search_path)
    finally:
        GlobalHydra.instance().clear()


def _add_config_dir(search_path: ConfigSearchPath, folder: Path) -> None:
    if not folder.is_dir():
        raise VarlabError(f"--config-dir {folder} is not a folder")
    before_schemas = SearchPathQuery(provider="schema")
    search_path.prepend(provider="command-line", path=f"file://{folder.resolve()}", anchor=before_schemas)


def _act(hydra: Hydra, command: Command, args: argparse.Namespace) -> int:
    name = args.config_name or command.name
    overrides = [*_HYDRA_SETTINGS, *args.overrides]
    with _suggestions(hydra, name, overrides):
        if args.help:
            print(_help(hydra, command, name, overrides))
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
    """Run the one job, or all that the sweep stands for. The exit code tells whether any failed."""
    job = functools.partial(run_job, command)
    if not multirun:
        _check_launch(hydra, name, overrides)
        done = hydra.run(name, job, [*overrides, "hydra.mode=RUN"])
        results = [done.return_value]
    else:
        folders = sweep.begin(hydra, command.name, name, _HYDRA_SETTINGS, overrides[len(_HYDRA_SETTINGS) :])
        try:
            batches = hydra.multirun(name, job, [*overrides, "hydra.mode=MULTIRUN"])
        finally:  # a job that was lost cannot say so itself
            for folder in folders:
                sweep.refresh(folder)
        results = [done.return_value for batch in batches for done in batch]
    failed = [result for result in results if result.error is not None]
    for line in _summary(results, failed) if multirun else [f"varlab {command.name}: {r.error}" for r in failed]:
        print(line, file=sys.stderr)
    return FAILED if failed else 0


def _check_launch(hydra: Hydra, name: str, overrides: list[str]) -> None:
    """Only a sweep is launched: Hydra would run the job here, and say nothing."""
    asked = [word for word in overrides if word.partition("=")[0].lstrip("+") == "launch"]
    if asked and _choices(_compose(hydra, name, overrides, RunMode.RUN), all_groups=True)["hydra/launcher"] != "basic":
        raise VarlabError(f"{asked[-1]} is for sweeps, of one job too: add -m (without it the job would run here)")


def _summary(results: Sequence[JobResult], failed: Sequence[JobResult]) -> list[str]:
    """After a sweep: one line for every job that failed."""
    if not failed:
        return []
    lines = [f"{len(failed)} of {len(results)} runs failed:"]
    return lines + [f"  {' '.join(result.overrides) or 'default'}: {result.error}" for result in failed]


@contextmanager
def _suggestions(hydra: Hydra, name: str, overrides: list[str]) -> Iterator[None]:
    """A misspelt key becomes a sentence with the keys that there are."""
    try:
        yield
    except Exception as error:
        key = unknown_key(error)
        if key is None:
            raise
        raise VarlabError(f"there is no key '{key}': {_neighbours(hydra, name, overrides, key)}") from error


def _neighbours(hydra: Hydra, name: str, overrides: list[str], key: str) -> str:
    """The keys beside one that does not exist, in the configuration without any unknown key."""
    groups = [o for o in overrides if "/" in o.partition("=")[0] or "." not in o.partition("=")[0]]
    kept = [o for o in groups if o.partition("=")[0].lstrip("+~") != key]
    try:
        cfg = _compose(hydra, name, kept, RunMode.MULTIRUN)
    except Exception:  # another thing is wrong too: the known keys can't be told
        return "see --help"
    parent, _, last = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else cfg
    if not isinstance(node, DictConfig):
        return f"'{parent}' has no keys"
    names = {str(k) for k in node} - {"hydra"} | (set() if parent else set(_choices(cfg)))
    return one_of(last, names, prefix=f"{parent}." if parent else "")


def _compose(hydra: Hydra, name: str, overrides: list[str], mode: RunMode) -> DictConfig:
    return hydra.compose_config(name, list(overrides), run_mode=mode, with_log_configuration=False)


def _choices(cfg: DictConfig, *, all_groups: bool = False) -> Config:
    """Group → option, of the groups that this command's configuration is made of; Hydra's own too if asked."""
    return {str(k): v for k, v in cfg.hydra.runtime.choices.items() if all_groups or not str(k).startswith("hydra")}


def _help(hydra: Hydra, command: Command, name: str, overrides: list[str]) -> str:
    """Purpose, choices with all their options, keys with their present values."""
    cfg = _compose(hydra, name, overrides, RunMode.RUN)
    lines = [f"varlab {command.name}: {command.purpose}", "", f"example: {command.example}"]
    lines += ["", "choices (group=option):"]
    for key, chosen in sorted(_choices(cfg).items()):
        options = hydra.config_loader.get_group_options(key.partition("@")[0])
        lines.append(f"  {key}: {', '.join(sorted(options))}" + (f"  [{chosen}]" if chosen else ""))
    keys = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    lines += ["", "keys (key=value; a.b=value inside):", *(f"  {x}" for x in OmegaConf.to_yaml(keys).splitlines())]
    return "\n".join([*lines, "", *_HELP_FOOTER])


_HELP_FOOTER = (
    "-m                one run for every combination of the values with commas: key=a,b,c",
    "--config-dir DIR  your own YAML: DIR/order/mine.yaml makes order=mine an option",
    "--cfg job         show the configuration instead of running it",
)
