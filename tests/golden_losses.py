"""Golden losses: short trainings of every kind, from configurations stored beside their losses.

The configurations are stored too, so that only code can change the losses, never a setting under conf/.
A training in float32 gives the same bits on processors of one kind, and other bits on another kind: an optimizer that
divides a gradient by its own size makes one rounding as large as a step. So three things are stored: what each known kind
of processor gives to the last bit; what float64 gives, on every processor; and how far float32 may lie from it
(``tests/bounds.py``).

``python -m tests.golden_losses kind`` stores the losses of this kind of processor; ``… float64`` what is the same on all
(an hour); ``… configurations`` composes the trainings again from conf/, after which the other two must be repeated.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests import bounds

FILE = Path(__file__).with_name("golden") / "losses.json"
PROCESSORS = FILE.with_name("losses_by_processor.json")
Stored = dict[str, dict[str, Any]]
Losses = dict[str, list[float]]
# The spread: trainings with other roundings, and what their farthest is multiplied by. Factor and runs are large because
# one rounding may turn a step of the optimizer around, or change a token: few trainings show it, and each by another amount.
RUNS, FACTOR = 6, 8
FLOAT64 = 32 * 2.0**-53 / bounds.ROUNDING  # float64's roundings over float32's, with room: no change hides in so little


def read() -> Stored:
    """name → {"config", "losses"}."""
    stored: Stored = json.loads(FILE.read_text())
    return stored


def train(stored: Stored, folder: Path) -> Losses:
    """Train each in ``folder``, in the order stored; later ones stand on earlier ones. Returns the loss of each update."""
    from tests import small
    from varlab.launch.job import execute
    from varlab.run.directory import RunDirectory
    from varlab.run.record import RunRecord

    losses: Losses = {}
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


def train_in_float64(stored: Stored, folder: Path, seed: int | None = None) -> Losses:
    """The same from the same weights in float64; with a seed, operations err as float32 does."""
    with ExitStack() as stack:
        stack.enter_context(bounds.float64())
        if seed is not None:
            stack.enter_context(bounds.Rounded(seed))
        return train(stored, folder)


def kind() -> str:
    """Which versions and instructions compute here, and the caches, by which MKL and oneDNN cut their sums."""
    program = (
        "import torch; torch.conv2d(torch.ones(4, 32, 32, 32), torch.ones(64, 32, 3, 3)); torch.eye(64) @ torch.eye(64);"
        "print('torch,isa:', torch.__version__, torch.backends.cpu.get_cpu_capability())"
    )
    environment = os.environ | {
        "ONEDNN_VERBOSE": "1",
        "MKL_VERBOSE": "1",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
    }
    output = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    lines = output.stdout.splitlines()
    torch_, onednn = (
        next((line.split(f"{key}:")[1] for line in lines if key in line), "none") for key in ("torch,isa", "cpu,isa")
    )
    header = next((line for line in lines if line.startswith("MKL_VERBOSE oneMKL")), "none")
    mode = next((word for line in lines for word in line.split() if word.startswith("CNR:")), "CNR:none")
    mkl = header.partition("architecture ")[2].partition(" processors")[0]
    caches = sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"))
    cpu = {key: value for key, value in _cpuinfo() if key in ("vendor_id", "cpu family", "model")}
    parts = [f"torch {torch_.strip()}", f"oneDNN {onednn}", f"MKL {mkl} {mode}", " ".join(cpu.values())]
    return ", ".join([*parts, "caches " + " ".join(path.read_text().strip() for path in caches)])


def _cpuinfo() -> list[tuple[str, str]]:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().split("\n\n")[0].splitlines() if path.exists() else []
    return [(key.strip(), value.strip()) for key, _, value in (line.partition(":") for line in lines)]


def processors() -> dict[str, Any]:
    """float64: version of torch → losses; spread: how far float32 may lie off; float32: kind of processor → losses."""
    return json.loads(PROCESSORS.read_text()) if PROCESSORS.exists() else {"float32": {}}


def differences(losses: Losses, wanted: Losses, bound: Mapping[str, list[float]] | None = None) -> list[str]:
    """Losses farther off than the bound, in words; without one, those that are not equal."""
    return [
        f"{name}, update {i}: {mine!r}, not {theirs!r} ± {allowed:.1e}"
        for name in losses
        for i, (mine, theirs) in enumerate(zip(losses[name], wanted[name], strict=True))
        if not abs(mine - theirs) <= (allowed := bound[name][i] if bound else 0.0)
    ]


def from_float64(losses: Losses, stored: dict[str, Any], bound: Mapping[str, list[float]]) -> list[str]:
    """Differences from the losses in float64 that fit best: torch 2.9 draws a generator's first weights in another way."""
    return min((differences(losses, exact, bound) for exact in stored["float64"].values()), key=len)


def in_float64(spread: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """The bound of float64: that of float32, in proportion."""
    return {name: [value * FLOAT64 for value in values] for name, values in spread.items()}


def main(what: str) -> int:
    """Train and store."""
    if what == "configurations":
        FILE.write_text(json.dumps(composed(), indent=1) + "\n")
        return 0
    from tests import small
    from varlab.cli.main import main as varlab

    stored = processors()
    with tempfile.TemporaryDirectory() as folder, small.inside(Path(folder)):
        assert varlab(["pack", "source=digits"]) == 0
        if what == "kind":
            stored["float32"][kind()] = train(read(), Path(folder))
        else:
            exact = train_in_float64(read(), Path(folder) / "exact")
            moved = [train_in_float64(read(), Path(folder) / str(seed), seed) for seed in range(RUNS)]
            stored.setdefault("float64", {})[kind().split("+")[0]] = exact
            stored["spread"] = spread(exact, moved)
    PROCESSORS.write_text(json.dumps(stored, indent=1) + "\n")
    print(f"{PROCESSORS}: {what}")
    return 0


def spread(exact: Losses, moved: list[Losses]) -> Losses:
    """How far float32 may lie off, update for update; what has come apart stays apart."""
    return {
        name: [
            FACTOR
            * max(4 * bounds.ROUNDING * loss, *(abs(o[name][k] - exact[name][k]) for o in moved for k in range(i + 1)))
            for i, loss in enumerate(losses)
        ]
        for name, losses in exact.items()
    }


def composed() -> Stored:
    """Configurations from conf/."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from tests import small
    from varlab.cli.app import conf_dir

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
    return stored


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(sys.argv[1] if len(sys.argv) > 1 else "kind"))
