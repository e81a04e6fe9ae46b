"""The YAML of the tasks: every file composes and instantiates, and choices inside a task can be overridden."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from tiny_tasks import RNG, classifier_task, generator_task, tokenizer_task

CONF = Path(__file__).parents[2] / "conf"


def _compose(overrides: Sequence[str], *, extra: Path | None = None) -> DictConfig:
    searched = [f"hydra.searchpath=[file://{extra}]"] if extra else []
    with initialize_config_dir(str(CONF), version_base=None):
        return compose("train", [*searched, *overrides])


def _build(cfg: DictConfig, **live: Any) -> Any:
    return instantiate(cfg.task, _convert_="all")(**live, rng=RNG)


def test_every_task_instantiates_from_its_yaml() -> None:
    generator, tokenizer, classifier = generator_task(), tokenizer_task(), classifier_task()
    built = _build(
        _compose(["task=generator"]),
        transformer=generator.model,
        order=generator.order,
        tokenizer=generator.tokenizer,
    )
    assert tuple(built.optims[0].defaults["betas"]) == (0.9, 0.95)
    cfg = _compose(["task=tokenizer", "trainer.micro_batch=4"])
    built = _build(cfg, tokenizer=tokenizer.model, discriminator=tokenizer.discriminator, perceptual=None)
    assert built.micro_batch == 4 and built.gan.kind == cfg.loss.gan.kind
    _build(_compose(["task=classifier"]), classifier=classifier.model)


def test_groups_inside_a_task_are_chosen_on_the_command_line() -> None:
    cfg = _compose(["task=tokenizer", "tokenizer=single", "loss=vqgan", "discriminator=none", "perceptual=none"])
    assert cfg.kind == "tokenizer" and cfg.tokenizer.scales == "one" and cfg.loss.gan.weight == 0.8
    assert cfg.discriminator is None and cfg.perceptual is None
    assert _compose(["order=raster"]).order._target_.startswith("varlab.order")


def test_an_experiment_overrides_the_task_and_what_is_inside(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /task: tokenizer\n  - override /tokenizer: single\n"
        "  - override /loss: vqgan\nseed: 5\ntask:\n  clip: 3.0\n"
    )
    cfg = _compose(["experiment=mine"], extra=tmp_path)
    assert (cfg.kind, cfg.tokenizer.scales, cfg.seed, cfg.task.clip) == ("tokenizer", "one", 5, 3.0)
    assert cfg.task.weights.l2 == cfg.loss.l2 == 0.0
    assert _compose(["experiment=mine", "tokenizer=multi", "seed=6"], extra=tmp_path).seed == 6
