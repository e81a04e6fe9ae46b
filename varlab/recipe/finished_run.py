"""A finished run, live: its model (``varlab.load``), and its shards and sampler for the commands that read it."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import fields, replace
from pathlib import Path

import torch

from varlab.checkpoint import load_weights
from varlab.config import Config
from varlab.data import ShardDataModule
from varlab.model import Model
from varlab.recipe.assembly import Build, assemble, build_tokenizer
from varlab.recipe.objects import make
from varlab.recipe.preflight.command_numbers import require_numbers
from varlab.recipe.preflight.named_runs import (
    WEIGHTS,
    require_generator,
    require_image_size,
    require_model,
    require_weights,
)
from varlab.rng import Rng
from varlab.run.record import FILE, read_finished, read_record
from varlab.run.trust import Trust, described_by
from varlab.sample import Sampler
from varlab.tokenizer import VQTokenizer
from varlab.types import VarlabError

logger = logging.getLogger(__name__)


def load(
    run: str | Path,
    *,
    weights: str = "ema",
    device: torch.device | str = "cpu",
    trust: bool | Iterable[str] | None = False,
) -> Model:
    """Load the model of a run directory.

    weights: "ema" (averaged, as in all scores), "raw" or "best" (of a training with ``checkpoint.best``). trust: the
    ``_target_``s beside varlab's own that the run may name, or True for any: then it can run whatever its author wrote.
    Raises VarlabError for others.
    """
    run = Path(run)
    require_weights(weights, run)
    record = read_record(run)
    require_model(run, record)
    with described_by(run / FILE, "model that can be built"):
        Trust.of(trust).check({key: value for key, value in record.build.items() if key != "classes"}, run / FILE)
        build = Build.from_json(record.build)
        model = assemble(build, Rng(0), condition_tokenizer=_condition_tokenizer(build, run))
    load_weights(model.transformer or model.tokenizer, run / WEIGHTS[weights])
    if model.transformer is not None:
        load_weights(model.tokenizer, run / "tokenizer.safetensors")
    return model.to(device)


def _condition_tokenizer(build: Build, run: Path) -> VQTokenizer | None:
    """The tokenizer of a run's condition, if that has one."""
    if build.condition is None or "tokenizer" not in build.condition:
        return None
    tokenizer = build_tokenizer(build.condition["tokenizer"], Rng(0))
    load_weights(tokenizer, run / "condition.safetensors")
    return tokenizer


_AVERAGE = ("weights", "ema")  # which every command takes by default


class FinishedRun:
    """The run that a command's ``run=DIR`` names: its record, and its model on the command's device.

    config: the command's. Raises VarlabError unless the run is finished and the command's numbers make sense.
    """

    def __init__(self, config: Config):
        require_numbers(config)
        if config["threads"] is not None:
            torch.set_num_threads(config["threads"])
        self._config = config
        self.path = Path(config["run"])
        self.record = read_finished(self.path)
        self.model = load(
            self.path, weights=config["weights"], device=device_of(config["device"]), trust=config.get("trust")
        )
        self._own_sampler = self.model.sampler

    @property
    def data_config(self) -> Config | None:
        """The shards that the command names, or else those that the run was trained on, if they may be opened."""
        config: Config | None = self._config.get("data") or self.record.config.get("data")
        if config is None or self._config.get("data"):
            return config
        if not isinstance(config, dict):
            raise VarlabError(f"{self.path / FILE} describes no images: its config.data is no JSON object.")
        trust = Trust.of(self._config.get("trust"))
        if trust.everything:
            return config
        trust.check(config, self.path / FILE)
        if config.keys() & {"train", "val"}:  # streamed shards
            from varlab.data.sequential.shard_stream import refuse_commands  # imports webdataset

            refuse_commands(config)
        # Where copies of remote shards are kept is not for a record to say.
        return {key: value for key, value in config.items() if key != "remote_cache"}

    def data(self, config: Config | None = None) -> ShardDataModule:
        """Open the run's shards, or those of ``config``. VarlabError if their images have another size than the run's."""
        config = config or self.data_config
        if config is None:
            raise VarlabError(f"{self.path} was not trained on shards: give data=folder data.path=DIR.")
        is_recorded = not self._config.get("data")
        with described_by(self.path / FILE, "images that can be read") if is_recorded else nullcontext():
            data: ShardDataModule = make(config)
            info = data.info
        require_image_size(self.record, info)
        return data

    def sampler(self) -> Sampler:
        """Return the run's sampler, or that of the group ``sampler``, with the settings that the command changes.

        The model samples with it from now on. A generator of one class is not guided: then cfg is 0.
        """
        require_generator(self.path, self.record)
        config = self._config
        assert self.model.sampler is not None
        base: Sampler = make(config["sampler"]) if config.get("sampler") else self.model.sampler
        changed = replace(base, **{f.name: config[f.name] for f in fields(Sampler) if config[f.name] is not None})
        if changed.cfg != 0 and len(self.model.classes) == 1:
            logger.warning("%s has one class, so nothing can be guided: cfg=%g is taken as 0", self.path, changed.cfg)
            changed = replace(changed, cfg=0.0)
        self.model.sampler = changed
        return changed

    def words(self) -> list[str]:
        """What this command changes about the run's samples, as words by which another command does the same."""
        asked = {key: self._config.get(key) for key in ("weights", "reject")}
        if self.model.sampler is not None and self._own_sampler is not None:
            now, own = self.model.sampler.settings(), self._own_sampler.settings()
            typed = now.keys() & self._config.keys() - {"smooth"}
            asked |= {key: now[key] for key in now if key in typed and now[key] != own.get(key)}
        return [f"{key}={value}" for key, value in asked.items() if value is not None and (key, value) != _AVERAGE]


def device_of(setting: str) -> torch.device:
    """The device that ``device=`` names; ``auto`` is a GPU if there is one."""
    if setting == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        return torch.empty(0, device=setting).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        reason = "torch knows no such device" if "Expected one of" in reason else reason
        raise VarlabError(f"device={setting} cannot be used here ({reason}).") from error
