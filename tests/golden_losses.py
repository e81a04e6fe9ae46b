"""Golden losses: short trainings of every kind, from configurations stored beside their losses.

The configurations are stored too, so that only code can change the losses, never a setting under conf/.
``python -m tests.golden_losses`` composes them anew from conf/ and stores what is trained.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("golden") / "losses.json"
Stored = dict[str, dict[str, Any]]


def read() -> Stored:
    """name → {"config", "losses"}."""
    stored: Stored = json.loads(FILE.read_text())
    return stored


def train(stored: Stored, folder: Path) -> dict[str, list[float]]:
    """Train each in ``folder``, in the order stored; later ones stand on earlier ones. Returns the loss of each update."""
    from tests import small
    from varlab.launch.job import execute
    from varlab.run.directory import RunDirectory
    from varlab.run.record import RunRecord

    losses = {}
    for name, entry in stored.items():
        config = entry["config"]
        if config["kind"] == "tokenizer":
            config["perceptual"]["run"] = str(folder / "perceptual")
        if config["kind"] == "generator":
            config["tokenizer_run"] = str(folder / entry["stands_on"])
        with RunDirectory(folder / name) as directory:
            directory.prepare(RunRecord(command="train", config=config))
            directory.finish(execute("varlab.cli.commands.train", config, directory))
        losses[name] = small.curve(folder / name, "train/loss")
    return losses


def main() -> int:
    """Compose, train, store."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from tests import small
    from varlab.cli.app import conf_dir
    from varlab.cli.main import main as varlab

    golden = ("data.batch=16", "log.every=16", "budget.images=64", "trainer.threads=1")
    asked = {
        "perceptual": (None, small.RUNS["perceptual"]),
        "multi": (None, (*small.RUNS["multi"], "loss.gan.start=32")),
        "single": (None, (*small.RUNS["single"], "loss.gan.start=32")),
        "next_scale": ("multi", (*small.RUNS["next_scale"], "tensorboard=false")),
        "raster": ("single", small.RUNS["raster"]),
        "random": ("single", (*small.RUNS["raster"], "order=random")),
    }
    stored: Stored = {}
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        for name, (stands_on, overrides) in asked.items():
            config = OmegaConf.to_container(compose("train", [*overrides, *golden]), resolve=True)
            stored[name] = {"stands_on": stands_on, "config": config}
    with tempfile.TemporaryDirectory() as folder, small.inside(Path(folder)):
        assert varlab(["pack", "source=digits"]) == 0
        for name, losses in train(json.loads(json.dumps(stored)), Path(folder)).items():
            stored[name]["losses"] = losses
    FILE.write_text(json.dumps(stored, indent=1) + "\n")
    print(f"{FILE}: {', '.join(stored)}")
    return 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main())
