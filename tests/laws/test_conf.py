"""Law 9: every YAML under conf/ instantiates (on the meta device), and every experiment runs two updates, shrunk as it says."""

from __future__ import annotations

import functools
import inspect
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import Profiler
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from pyarrow import parquet
from torch import nn

from tests import small
from tests.data.pack.loading import load_samples
from tests.laws.conftest import load as group
from varlab.cli.app import conf_dir
from varlab.cli.command_table import COMMANDS
from varlab.cli.main import main
from varlab.data import ShardDataModule, StreamDataModule
from varlab.data.pack.sources.base import Skipped, SourceSample
from varlab.metrics import named_protocol
from varlab.metrics.extractors import ClassifierExtractor
from varlab.order import BaseOrder
from varlab.order.base import positions
from varlab.recipe.assembly import build_condition, build_order, build_tokenizer
from varlab.recipe.objects import make, target_of
from varlab.recipe.parents import Parents
from varlab.recipe.plan import precision
from varlab.recipe.trainer.parts import EXTRAS, make_loggers, make_profiler
from varlab.recipe.trainer.settings import check_keys
from varlab.rng import Rng
from varlab.sample import Sampler
from varlab.score.scorer import GeneratorScorer
from varlab.score.token_scores import PerturbedFID, token_scores
from varlab.tasks import GanLoss, LossWeights, Task
from varlab.tasks.update.optimizer import build_optimizer
from varlab.tokenizer import Quantizer, VQTokenizer
from varlab.tokenizer.condition import SOURCES, Condition
from varlab.types import VarlabError

CONF = conf_dir()
SCALES = [[1, 1], [2, 2], [4, 4]]
VAR_SCALES = [(n, n) for n in (1, 2, 3, 4, 5, 6, 8, 10, 13, 16)]


def files(folder: str) -> list[str]:
    """All files of a group, in folders of it too, by name."""
    return sorted(str(path.relative_to(CONF / folder).with_suffix("")) for path in (CONF / folder).rglob("*.yaml"))


def composed(name: str, *overrides: str, hydra: bool = False) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose(name, list(overrides), return_hydra_config=hydra)


def train_config(*overrides: str) -> dict[str, Any]:
    return OmegaConf.to_container(composed("train", *overrides), resolve=True)  # type: ignore[return-value]


# -- one check a group: what its files become --------------------------------------------------------------------------


def tokenizer(name: str, lab: Path, tmp_path: Path) -> None:
    with torch.device("meta"):
        model = build_tokenizer(group("tokenizer", name), Rng(0))
        rec_B3HW, quantized = model(torch.empty(2, 3, *model.image_size))
    assert rec_B3HW.shape == (2, 3, *model.image_size)
    assert quantized.counts_KV.shape == (len(model.scales), model.vocab_size)


def order(name: str, lab: Path, tmp_path: Path) -> None:
    made = build_order(group("order", name), _Scales())
    assert isinstance(made, BaseOrder) and sum(made.steps) == made.num_positions == 21


class _Scales:
    scales = SCALES


def transformer(name: str, lab: Path, tmp_path: Path) -> None:
    config = group("transformer", name)
    live = dict(
        vocab_size=4096, code_dim=32, num_classes=1000, positions_P3=positions(VAR_SCALES), source_positions=False
    )
    with torch.device("meta"):
        model = make(config, **live)
    assert len(model.blocks) == config["depth"] and model.head.weight.shape == (4096, config["width"])


def classifier(name: str, lab: Path, tmp_path: Path) -> None:
    with torch.device("meta"):
        model = make(group("classifier", name) | {"num_classes": 7})
        assert model(torch.empty(2, 3, 16, 16)).shape == (2, 7)


def discriminator(name: str, lab: Path, tmp_path: Path) -> None:
    config = train_config("task=tokenizer", f"discriminator={name}")["discriminator"]
    if name == "none":
        assert config is None
        return
    if (
        "weights" in config and config["weights"] is None
    ):  # a test of losses/ makes some; here its keys are what matters
        with pytest.raises(VarlabError, match="needs the weights"):
            make(config)
        return
    with torch.device("meta"):
        assert make(config)(torch.empty(2, 3, 256, 256)).shape[:2] == (2, 1)


def perceptual(name: str, lab: Path, tmp_path: Path) -> None:
    config = train_config("task=tokenizer", f"perceptual={name}")["perceptual"]
    parents = Parents(info=small_data().info, near=tmp_path / "run")
    if name == "none":
        assert parents.perceptual(config) is None
    elif config["_target_"].endswith("LPIPS"):
        asked = _weights_asked_for(lambda: parents.perceptual(config))
        assert asked in [(config[net], config[f"{net}_sha256"]) for net in ("vgg", "lpips")]
    else:
        assert isinstance(parents.perceptual(config), nn.Module)
        assert parents.used["perceptual"].run == "runs/perceptual"


def extractor(name: str, lab: Path, tmp_path: Path) -> None:
    config = group("extractor", name)
    parents = Parents(info=small_data().info, near=tmp_path / "run")
    if "weights" in config:  # a test of metrics/ has weights for it; here its keys are what matters
        with pytest.raises(VarlabError, match=r"no Inception weights at .*absent"):
            parents.extractor(config | {"weights": "absent"})
        return
    if "folder" in config:
        with pytest.raises(VarlabError, match=r"There is no absent/config\.json"):
            parents.extractor(config | {"folder": "absent"})
        return
    assert isinstance(parents.extractor(config), ClassifierExtractor)
    assert parents.used["judge"].run == "runs/judge"


def _weights_asked_for(load: Callable[[], Any]) -> tuple[str, str]:
    """What a network with published weights asks for first."""

    class Asked(Exception):
        pass

    def ask(source: str, sha256: str) -> None:
        raise Asked(source, sha256)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Asked) as asked:
        patch.setattr("varlab.losses.perceptual.fetch_weights", ask)
        load()
    return asked.value.args  # type: ignore[return-value]


def optimizer(name: str, lab: Path, tmp_path: Path) -> None:
    built = build_optimizer(make(group("optimizer", name)), nn.Linear(2, 2))
    assert [set(group) >= {"lr", "weight_decay", "initial_lr"} for group in built.param_groups] == [True, True]


def loss(name: str, lab: Path, tmp_path: Path) -> None:
    config = train_config("task=tokenizer", f"loss={name}")
    weights, gan = make(config["task"]["weights"]), make(config["task"]["gan"])
    assert isinstance(weights, LossWeights) and weights.l1 == config["loss"]["l1"]
    assert isinstance(gan, GanLoss) and gan.start == config["loss"]["gan"]["start"]


def crop(name: str, lab: Path, tmp_path: Path) -> None:
    made = make(train_config("data=digits", f"crop@data.crop={name}")["data"]["crop"])
    top, left, bottom, right = made.box(30, 50, 1.0, [0.5] * 64)
    assert 0 <= top < bottom <= 30 and 0 <= left < right <= 50


def data(name: str, lab: Path, tmp_path: Path) -> None:
    where = "data.path='runs/data/source=digits'"
    if name == "tokens":
        assert main(["encode", "runs/multi", f"out={tmp_path / 'tokens'}"]) == 0
        tokens = make(train_config("data=tokens", f"data.path={tmp_path / 'tokens'}", "data.batch=6")["data"])
        assert next(iter(tokens.train_loader(0, 6, 0, 1))).tokens_BP.shape == (6, 30)
        return
    overrides = [where]
    if name == "stream":
        overrides = [f"data.{s}='runs/data/source=digits/{s}-00000{{0,0}}.tar'" for s in ("train", "val")]
        overrides += ["data.classes=10", "data.size=16", "data.train_images=2876", "data.val_images=300"]
    overrides += ["data.workers=0", "data.batch=6"]
    module = make(train_config(f"data={name}", *overrides)["data"])
    assert isinstance(module, StreamDataModule if name == "stream" else ShardDataModule)
    batch = next(iter(module.train_loader(0, 6, 0, 1)))
    assert batch.img_u8_B3HW.shape == (6, 3, 16, 16)


def source(name: str, lab: Path, tmp_path: Path) -> None:
    FOUND.get(name, lambda folder: None)(tmp_path)
    config = composed("pack", f"source={name}", *([f"path={tmp_path}"] if name in FOUND else []))
    made = instantiate(config.source)
    first = load_samples(made, "train")[0]
    assert len(made.classes) >= 2 and 0 <= first.label < len(made.classes)


def _as_folder(folder: Path) -> None:
    for kind in ("a", "b"):
        (folder / kind).mkdir()
        for i in range(4):
            (folder / kind / f"{i}.png").write_bytes(_png(i))


def _as_tars(folder: Path) -> None:
    with tarfile.open(folder / "00000.tar", "w") as tar:
        for i in range(8):
            for ending, content in (("png", _png(i)), ("cls", b"%d" % (i % 2))):
                member = tarfile.TarInfo(f"{i:04d}.{ending}")
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))


def _as_parquet(folder: Path) -> None:
    rows = {"image": [{"bytes": _png(i), "path": None} for i in range(8)], "label": [i % 2 for i in range(8)]}
    parquet.write_table(pyarrow.table(rows), folder / "data.parquet")


def _png(i: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (20, 20), (i, 0, 0)).save(buffer, format="PNG")
    return buffer.getvalue()


FOUND = {"folder": _as_folder, "parquet": _as_parquet, "tars": _as_tars}
"""The sources that take what is there: something for each of them."""


def condition(name: str, lab: Path, tmp_path: Path) -> None:
    """What packing makes of it, or training."""
    config = train_config(f"condition={name}", *([f"condition.path={tmp_path}"] if name == "folder" else []))[
        "condition"
    ]
    if name == "none":
        assert config is None
    elif (cls := target_of(config)) and issubclass(cls, Condition):  # type: ignore[arg-type]
        own = {"tokenizer": group("tokenizer", "single")} if config.pop("tokenizer_run", None) else {}
        made = build_condition(config | own, tokenizer=_Scales())  # type: ignore[arg-type]
        assert made.num_tokens == 16 and made.vocab_size > 0 and set(made.needs) <= set(SOURCES)
    else:
        drawn = make(config).draw(SourceSample(key="a", label=0, image=Image.new("L", (16, 16)), file="a/0.png"), _GREY)
        assert drawn.size == (16, 16) if name != "folder" else isinstance(drawn, Skipped)


_GREY = Image.new("L", (16, 16))


def format(name: str, lab: Path, tmp_path: Path) -> None:
    """What an import makes of an official checkpoint: complete but for what the file tells."""
    config = composed("import", f"format={name}")
    assert config.format.name == name and config.order and config.sampler
    keys = set(inspect.signature(VQTokenizer).parameters) - {"quantizer", "quantizer_arguments"}
    inferred = keys.union(inspect.signature(Quantizer).parameters) - set(config.format.tokenizer)
    assert inferred == {*TOLD, "scales"} and config.format.scales


TOLD = ("vocab_size", "code_dim", "channels", "channel_mult", "decoder_channel_mult", "res_blocks", "z_channels")
TOLD += ("attention", "mid_attention", "quant_kernel", "phi_count")


def metrics(name: str, lab: Path, tmp_path: Path) -> None:
    keywords = inspect.signature(GeneratorScorer).parameters
    needed = {key for key, parameter in keywords.items() if parameter.default is inspect.Parameter.empty}
    has = set(group("metrics", name))
    assert needed - {"source", "extractor", "data", "n"} <= has <= set(keywords) | {"protocol", "protocols", "tokens"}
    if tokens := group("metrics", name).get("tokens"):
        assert set(tokens) <= set(inspect.signature(token_scores).parameters)
        assert {*tokens["perturbed"]} <= set(inspect.signature(PerturbedFID).parameters)
    asked = group("metrics", name).get("protocol") or {"name": name}
    assert asked["name"] == name and set(asked) - {"name"} <= set(named_protocol._WORDS)


def sampler(name: str, lab: Path, tmp_path: Path) -> None:
    assert isinstance(make(group("sampler", name)), Sampler)


def task(name: str, lab: Path, tmp_path: Path) -> None:
    config = train_config(f"task={name}")
    made = make(config["task"])  # waits for its live objects
    assert isinstance(made, functools.partial) and issubclass(made.func, Task)
    assert set(made.keywords) < set(inspect.signature(made.func).parameters) and config["kind"]
    planned = inspect.signature(make(config["planner"]).func).parameters
    assert list(planned) == ["config", "data", "rng", "directory"]


def what(name: str, lab: Path, tmp_path: Path) -> None:
    """tests/bench measures each of them."""
    config = composed("bench", f"what={name}")
    assert config.what == name and config.works._partial_ and config.batch > 0


def trainer(name: str, lab: Path, tmp_path: Path) -> None:
    config = train_config(f"trainer={name}")["trainer"]
    check_keys(config)
    assert config.get("shard", False) == (name == "fsdp") and target_of(config) is Trainer
    assert precision(config["precision"], config["accelerator"]) in ("32-true", "bf16-mixed")


def logger(name: str, lab: Path, tmp_path: Path) -> None:
    if name in EXTRAS:
        pytest.importorskip(name)
    made = make_loggers(train_config(f"logger={name}", f"out={tmp_path}"))
    assert [isinstance(one, Logger) for one in made] == ([] if name == "none" else [True])


def callbacks(name: str, lab: Path, tmp_path: Path) -> None:
    parts = train_config(f"callbacks={name}")["callbacks"]
    assert parts and all(issubclass(target_of(part), Callback) for part in parts.values())  # type: ignore[arg-type]


def profiler(name: str, lab: Path, tmp_path: Path) -> None:
    made = make_profiler(train_config(f"profiler={name}", f"out={tmp_path}"))
    assert made is None if name == "none" else isinstance(made, Profiler)


def launch(name: str, lab: Path, tmp_path: Path) -> None:
    config = composed("train", f"launch={name}", hydra=True)  # Hydra holds it against the launcher's own schema
    values = OmegaConf.to_container(config.hydra.launcher, resolve=False)
    assert "Launcher" in values["_target_"] or values["_target_"].startswith("hydra_plugins.varlab_")
    assert name == "local" or len(values) > 1


def experiment(name: str, lab: Path, tmp_path: Path) -> None:
    """Runs at its own declared size; the runs it stands on are the small world's, found by ``auto``."""
    config = composed("train", f"experiment={name}")
    assert config.name == name and config.shrink, f"conf/experiment/{name}.yaml declares no shrink: list"
    batch = int(dict(word.split("=", 1) for word in config.shrink).get("data.batch", config.data.batch))
    arguments = [f"experiment={name}", *config.shrink, f"budget.images={2 * batch}", "budget.flops=null"]
    out = tmp_path / "run"
    assert main(["train", f"out={out}", *arguments, f"log.every={batch}", "tensorboard=false"]) == 0
    assert len(small.curve(out, "train/loss")) == 2 and small.record(out)["outcome"]["state"] == "finished"


CHECKS = {
    check.__name__: check
    for check in (
        callbacks,
        classifier,
        condition,
        crop,
        data,
        discriminator,
        experiment,
        extractor,
        format,
        launch,
        logger,
        loss,
        metrics,
        optimizer,
        order,
        perceptual,
        profiler,
        sampler,
        source,
        task,
        tokenizer,
        trainer,
        transformer,
        what,
    )
}
# Those of the fast tests show each kind of task; the other experiments are the same tasks with other numbers.
FAST = (
    "digits/generator",
    "own/laptop",
    "digits/judge",
    "digits/tokenizer",
    "photos/edges",
    "imagenet/var_d16",
    "imagenet/llamagen_b",
)
EVERY = [
    pytest.param(folder, name, marks=pytest.mark.slow if folder == "experiment" and not name.startswith(FAST) else ())
    for folder in sorted(CHECKS)
    for name in files(folder)
]


def small_data() -> ShardDataModule:
    return make(train_config("data=digits")["data"])


@pytest.mark.parametrize(("folder", "name"), EVERY, ids=lambda part: part)
def test_every_file_becomes_what_it_stands_for(folder: str, name: str, lab: Path, tmp_path: Path) -> None:
    CHECKS[folder](name, lab, tmp_path)


def test_no_file_is_left_out() -> None:
    grouped = {CONF / folder / f"{name}.yaml" for folder, name in (param.values for param in EVERY)}
    commands = {CONF / f"{name}.yaml" for name in COMMANDS}
    tables = {CONF / f"{name}.yaml" for name in ("alternatives", "cards", "fit", "typed_values")}
    assert set(CONF.rglob("*.yaml")) == grouped | commands | tables


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_composes(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    needed = [] if COMMANDS[command].positional is None else ["runs/a"]
    kind = ["format=var"] if command in ("import", "export") else []
    assert main([command, *needed, *kind, "--cfg", "job"]) == 0
    assert set(composed(command, *kind)) >= {"name", "out"} and "name:" in capsys.readouterr().out


def test_shrinking_is_no_part_of_the_configuration(lab: Path, tmp_path: Path) -> None:
    """The list tells tests what to do; a run with another list is the same run."""
    arguments = ("train", f"out={tmp_path / 'run'}", *small.RUNS["judge"], "budget.images=64")
    assert main([*arguments]) == 0
    before = (tmp_path / "run" / "weights.safetensors").stat().st_mtime_ns
    assert main([*arguments, "shrink=[anything]"]) == 0
    assert (tmp_path / "run" / "weights.safetensors").stat().st_mtime_ns == before
