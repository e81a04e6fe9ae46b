"""``varlab COMMAND --help``: what can be chosen and set, with the comments that stand beside the keys in ``conf/``."""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from textwrap import wrap

from hydra._internal.hydra import Hydra
from hydra.core.object_type import ObjectType
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from varlab.cli.command_table import Command
from varlab.cli.yaml_comments import Comments, description, read_comments
from varlab.launch.sweep import compose

__all__ = ["choices", "help_page"]

_NARROW, _WIDE = 60, 120
_OWN_LINE = re.compile(r"\s|[A-Z][\w ]*:")  # of a description: an indented line, or one such as "Cost: …"

Rows = Iterable[tuple[str, Sequence[str]]]

_FOOTER: Rows = (
    ("group=option --help", ["the keys of another option, as in: varlab train task=tokenizer --help"]),
    ("-m", ["one run for every combination of the values with commas: key=a,b,c"]),
    (
        "--config-dir DIR",
        ["your own YAML: DIR/order/mine.yaml makes order=mine an option; its _target_ finds DIR/mine.py"],
    ),
    ("--brief", ["leave out what to type next, and warnings that repeat those of varlab pack"]),
    ("--cfg job", ["show the configuration with the classes of its parts, instead of running it"]),
)


def choices(cfg: DictConfig) -> dict[str, str | list[str] | None]:
    """The option of each config group, without Hydra's own groups; ``???`` where one must be given."""
    chosen = OmegaConf.to_container(cfg.hydra.runtime.choices)
    assert isinstance(chosen, dict)
    return {str(key): value for key, value in chosen.items() if not str(key).startswith("hydra")}


def help_page(hydra: Hydra, command: Command, name: str, overrides: Sequence[str]) -> str:
    """The help of a command with the options and values that are given before ``--help``."""
    cfg = compose(hydra, name, overrides, RunMode.MULTIRUN)
    comments = Comments()
    for file, package in _files(hydra, name, overrides):
        comments.update(read_comments(file, package))
    width = min(max(shutil.get_terminal_size().columns, _NARROW), _WIDE)
    chosen = choices(cfg)
    lines = [*_fill(f"varlab {command.name}: {command.purpose}", width, "  "), *_described(hydra, name, width)]
    lines += ["", *_fill(f"example: {command.example}", width, "  ")]
    if "experiment" in chosen:
        experiment = chosen.pop("experiment")
        if isinstance(experiment, str):
            lines += ["", f"experiment={experiment}", *_described(hydra, f"experiment/{experiment}", width)]
        else:
            lines += ["", "experiments (experiment=NAME):", *_table(_experiments(hydra), width)]
    lines += ["", "choices (group=option):", *_table(_options(hydra, chosen, comments), width)]
    lines += ["", "keys (key=value; ???: must be given; ${a.b}: follows the key a.b):"]
    for block in _blocks(cfg, comments, command.renamed):
        lines += [*_table(block, width), ""]
    lines += _table(_FOOTER, width, indent="")
    return "\n".join(lines)


def _files(hydra: Hydra, name: str, overrides: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """The YAML files of a configuration, later ones over earlier ones, and the key under which each is put."""
    defaults = hydra.config_loader.compute_defaults_list(name, list(overrides), RunMode.MULTIRUN).defaults
    for default in defaults:
        if file := _file(hydra, default.config_path or ""):
            yield file, (default.package or "").removeprefix("_global_")


def _file(hydra: Hydra, name: str) -> Path | None:
    places = [entry.path or "" for entry in hydra.config_loader.get_search_path().get_path()]
    folders = [Path(place.removeprefix("file://")) for place in places if place.startswith("file://")]
    return next((file for folder in folders if (file := folder / f"{name}.yaml").is_file()), None)


def _described(hydra: Hydra, name: str, width: int) -> list[str]:
    """The comment at the top of a file, filled to the width."""
    file = _file(hydra, name)
    paragraphs: list[str] = []
    for line in description(file) if file else ():
        if paragraphs and not _OWN_LINE.match(line):
            paragraphs[-1] += f" {line}"
        else:
            paragraphs.append(line)
    return [line for text in paragraphs for line in _fill(f"  {text}", width, "    ")]


def _experiments(hydra: Hydra) -> Rows:
    for name in _names(hydra, "experiment"):
        file = _file(hydra, f"experiment/{name}")
        first, *_ = [*(description(file) if file else []), ""]
        yield name, (first.removeprefix("Question:").strip(),)


def _names(hydra: Hydra, group: str) -> list[str]:
    """The options of a config group, those in its folders, too."""
    loader = hydra.config_loader
    folders = loader.get_group_options(group, results_filter=ObjectType.GROUP)
    inside = (f"{folder}/{name}" for folder in folders for name in _names(hydra, f"{group}/{folder}"))
    return sorted({*loader.get_group_options(group), *inside})


def _options(hydra: Hydra, chosen: Mapping[str, str | list[str] | None], comments: Comments) -> Rows:
    """A row for each group: what is chosen and what this is, and the other options."""
    for key, option in sorted(chosen.items()):
        group = key.partition("@")[0]
        said = [comments.groups.get(key, "")]
        for one in option if isinstance(option, list) else [option]:
            file = _file(hydra, f"{group}/{one}")
            said.append(" ".join(line.strip() for line in description(file)) if file else "")
        others = [name for name in _names(hydra, group) if name != option]
        yield f"{key}={_shown(option)}", [*filter(None, said), f"others: {', '.join(others)}" if others else ""]


def _blocks(cfg: DictConfig, comments: Comments, renamed: Mapping[str, str]) -> Iterator[Rows]:
    """A row for each key, by the name that people type. Keys that contain others are blocks, and have a heading if they
    have a comment."""
    typed = {name: key for key, name in renamed.items()}
    hidden = {"hydra", *(key for key in choices(cfg) if not isinstance(cfg.get(key), DictConfig))}
    tree = OmegaConf.to_container(OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key not in hidden]))
    assert isinstance(tree, dict)
    for _, block in groupby(tree.items(), lambda item: item[0] if isinstance(item[1], dict) else None):
        rows = [
            (f"{typed.get(name, name)}{end}", (said,))
            for top, content in block
            for name, end in _leaves(str(top), content)
            if (said := comments.keys.get(name, "")) or end != ":"
        ]
        if rows:
            yield rows


def _leaves(name: str, value: object) -> Iterator[tuple[str, str]]:
    """A key with ``=value``, or with a colon and then what it contains. Keys of Hydra, as ``_target_``, are left out."""
    if not isinstance(value, dict) or not value:
        yield name, f"={_shown(value)}"
        return
    inside = {key: content for key, content in value.items() if not str(key).startswith("_")}
    if inside:
        yield name, ":"
    for key, content in inside.items():
        yield from _leaves(f"{name}.{key}", content)


def _shown(value: object) -> str:
    """A value as it is typed."""
    if isinstance(value, list):
        return f"[{', '.join(map(_shown, value))}]"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) and value >= 1e6 else str(value)


def _table(rows: Rows, width: int, indent: str = "  ") -> list[str]:
    """Two columns; a row with a long left cell has its right cell below."""
    column = width * 2 // 5
    margin = " " * column
    lines: list[str] = []
    for left, right in rows:
        body = [line for text in right for line in _fill(text, width - column, "")]
        head = _fill(f"{indent}{left}", width, f"{indent}    ") or [""]
        if body and len(head[-1]) < column - 1:
            head[-1] = f"{head[-1]:<{column}}{body.pop(0)}"
        lines += [*head, *(f"{margin}{line}" for line in body)]
    return lines


def _fill(text: str, width: int, later: str) -> list[str]:
    return wrap(text, width, subsequent_indent=later, break_long_words=False, break_on_hyphens=False)
