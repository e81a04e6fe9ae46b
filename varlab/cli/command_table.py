"""The commands, as data. Standard library only: `varlab --help` reads this and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["COMMANDS", "Command"]


@dataclass(frozen=True)
class Command:
    """One command: ``conf/<name>.yaml`` and a module with ``run(cfg: DictConfig, directory: RunDirectory) -> dict``.

    What ``run`` returns (plain JSON types) is the run's outcome.
    """

    name: str
    module: str
    purpose: str  # one line, for the list of commands
    example: str
    positional: str | None = None  # the key that bare arguments are meant for
    renamed: Mapping[str, str] = field(default_factory=dict)  # keys that are config groups elsewhere, but values here
    recorded: bool = True  # False: no run.json, and always done anew (a report: its inputs change)


def _table(*commands: Command) -> dict[str, Command]:
    return {command.name: command for command in commands}


COMMANDS: Mapping[str, Command] = _table(
    Command(
        "pack",
        "varlab.cli.commands.pack",
        "images into WebDataset shards",
        "varlab pack source=folder path=photos/",
    ),
    Command(
        "index",
        "varlab.cli.commands.index",
        "an index for shards that are there, or a check of them",
        "varlab index /data/imagenet-wds check=true",
        positional="path",
        recorded=False,
    ),
    Command(
        "bench",
        "varlab.cli.commands.bench",
        "how fast samples come, part by part, beside plain webdataset",
        "varlab bench data.path=runs/data/photos crop@data.crop=random_resized",
        recorded=False,
    ),
    Command(
        "train",
        "varlab.cli.commands.train",
        "a tokenizer, a generator or a classifier",
        "varlab train -m experiment=digits/generator order=next_scale,raster seed=0,1",
    ),
    Command(
        "encode",
        "varlab.cli.commands.encode",
        "a data set into token maps, by a trained tokenizer",
        "varlab encode runs/tokenizer/default",
        positional="run",
    ),
    Command(
        "sample",
        "varlab.cli.commands.sample",
        "images from a trained generator",
        "varlab sample runs/generator/default seed=1",
        positional="run",
    ),
    Command(
        "edit",
        "varlab.cli.commands.edit",
        "part of a picture painted anew by a trained generator",
        "varlab edit runs/generator/default task=inpaint image=cat.png box=[0.25,0.25,0.75,0.75]",
        positional="run",
        renamed={"task": "kind"},
    ),
    Command(
        "evaluate",
        "varlab.cli.commands.evaluate",
        "scores of a trained tokenizer or generator",
        "varlab evaluate runs/generator/default",
        positional="run",
    ),
    Command(
        "import",
        "varlab.cli.commands.import_",
        "an official checkpoint of VAR, VQGAN or LlamaGen into a run",
        "varlab import format=var tokenizer=vae_ch160v4096z32.pth transformer=var_d16.pth",
        renamed={"tokenizer": "files.tokenizer", "transformer": "files.transformer"},
    ),
    Command(
        "export",
        "varlab.cli.commands.export",
        "a run's weights as the official code reads them",
        "varlab export runs/import/default format=var",
        positional="run",
    ),
    Command(
        "report",
        "varlab.cli.commands.report",
        "one page about any set of runs",
        "varlab report runs/generator out=runs/report/orders",
        positional="runs",
        recorded=False,
    ),
)
