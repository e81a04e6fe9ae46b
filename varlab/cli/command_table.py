"""The commands, as data. Standard library only: ``varlab --help`` reads this and nothing else."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

__all__ = ["COMMANDS", "Command"]


@dataclass(frozen=True)
class Command:
    """One command: ``conf/<name>.yaml``, and a module with ``run(config: Config, directory: RunDirectory) -> Config``.

    What ``run`` returns (JSON types) is the run's outcome. purpose: one line for the list of commands. positional: the
    key of bare arguments. renamed: keys that are config groups elsewhere and plain values in this command, with their
    names in its configuration. open_groups: those that take keys which their files do not list. recorded: False for a
    command without run.json, which runs every time it is called. module: where ``run`` is, by default in
    ``varlab.cli.commands``. check: the function that refuses, before ``run`` is imported, what can be known without torch.
    complete: the function that replaces settings which follow from the data, before they are recorded. needs: keys that
    only a choice brings, with that choice. displaces: keys whose value, if there is one, takes the place of other words.
    """

    name: str
    purpose: str
    example: str
    positional: str | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)
    open_groups: tuple[str, ...] = ()
    recorded: bool = True
    module: str = ""
    check: str = ""
    complete: str = ""
    needs: Mapping[str, str] = field(default_factory=dict)
    displaces: Mapping[str, Collection[str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.module:
            object.__setattr__(self, "module", f"varlab.cli.commands.{self.name}")


_COMMANDS = (
    Command(
        "start",
        "from a folder of pictures to samples, scores and a report, in the minutes you have",
        "varlab start photos/ size=32 minutes=30",
        positional="folder",
        recorded=False,
        check="varlab.start.request.check",
    ),
    Command(
        "pack",
        "images into WebDataset shards",
        "varlab pack source=folder path=photos/",
        needs={"path": "source=folder"},
        check="varlab.recipe.preflight.file_checks.check_pack",
    ),
    Command(
        "index",
        "an index for existing shards, or a check of it",
        "varlab index /data/imagenet-wds check=true",
        positional="path",
        recorded=False,
        check="varlab.recipe.preflight.file_checks.check_index",
    ),
    Command(
        "bench",
        "the speed of a piece of varlab's work on this machine, part by part",
        "varlab bench what=train tokenizer=var transformer=var_d16",
        recorded=False,
        check="varlab.recipe.preflight.file_checks.check_bench",
        displaces={"run": ("tokenizer", "order", "transformer", "condition", "sampler", "image_size", "num_classes")},
    ),
    Command(
        "train",
        "a tokenizer, a generator or a classifier",
        "varlab train -m experiment=digits/generator order=next_scale,raster seed=0,1",
        open_groups=("trainer",),
        check="varlab.recipe.preflight.train_checks.check",
        complete="varlab.recipe.preflight.fitted_settings.complete",
    ),
    Command(
        "encode",
        "a data set into token maps, by a trained tokenizer",
        "varlab encode runs/tokenizer/default",
        positional="run",
        check="varlab.recipe.preflight.model_checks.check_encode",
        complete="varlab.recipe.preflight.fitted_settings.complete",
    ),
    Command(
        "sample",
        "images from a trained generator",
        "varlab sample runs/generator/default seed=1",
        positional="run",
        renamed={"format": "kind"},
        check="varlab.recipe.preflight.model_checks.check_sample",
    ),
    Command(
        "edit",
        "a part of a picture, painted by a trained generator",
        "varlab edit runs/generator/default task=inpaint image=cat.png box=[0.25,0.25,0.75,0.75]",
        positional="run",
        renamed={"task": "kind"},
        check="varlab.recipe.preflight.model_checks.check_edit",
    ),
    Command(
        "evaluate",
        "scores of a trained tokenizer or generator",
        "varlab evaluate runs/generator/default",
        positional="run",
        check="varlab.recipe.preflight.model_checks.check_evaluate",
        complete="varlab.recipe.preflight.fitted_settings.complete",
    ),
    Command(
        "reference",
        "what samples are compared with: moments and images of shards, in one file",
        "varlab reference data=shards data.path=runs/data/imagenet extractor=inception",
        check="varlab.recipe.preflight.model_checks.check_reference",
        complete="varlab.recipe.preflight.fitted_settings.complete",
    ),
    Command(
        "import",
        "an official checkpoint of VAR, VQGAN or LlamaGen into a run",
        "varlab import format=var tokenizer=vae_ch160v4096z32.pth transformer=var_d16.pth",
        renamed={"tokenizer": "files.tokenizer", "transformer": "files.transformer"},
        module="varlab.cli.commands.import_",
        check="varlab.recipe.preflight.file_checks.check_import",
    ),
    Command(
        "export",
        "a run's weights in the format of the official code",
        "varlab export runs/import/default format=var",
        positional="run",
        check="varlab.recipe.preflight.model_checks.check_export",
    ),
    Command(
        "check",
        "whether a part of your own keeps its contract",
        "varlab check my_module:MyTokenizer",
        positional="target",
        recorded=False,
    ),
    Command(
        "report",
        "one page about any set of runs",
        "varlab report runs/generator out=runs/report/orders",
        positional="runs",
        recorded=False,
    ),
)
COMMANDS: Mapping[str, Command] = {command.name: command for command in _COMMANDS}
