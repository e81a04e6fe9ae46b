"""Make the stored old runs again: everything that varlab wrote at commit d11e80b, at the smallest sizes that train.

They must be made with the code of that commit, from a checkout of it::

    git worktree add ../before d11e80b
    cd ../before && PYTHONPATH=. python ../varlab/tests/old/make.py

Writes beside itself: ``runs.tar.xz`` (the folder ``runs/``), ``answers.json`` (the numbers that the commit computes from
these runs, see ``answers.py``) and ``targets.txt`` (every ``_target_`` of the commit's ``conf/``).
"""

from __future__ import annotations

import importlib
import inspect
import io
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}  # before torch is imported

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE))

FAST = ("trainer.precision=32-true", "log.every=16", "val.every=64", "data.batch=16", "tensorboard=false")
DATA = ("data=folder", "data.path=runs/data/letters", "data.workers=0", "seed=3")
CLASSIFIER = (
    "task=classifier",
    *DATA,
    "classifier.channels=[4,4,8]",
    "classifier.groups=2",
    "budget.images=192",
    "task.optimizer.lr=0.02",
    *FAST,
)
TOKENIZER = (
    "task=tokenizer",
    *DATA,
    "tokenizer.channels=4",
    "tokenizer.channel_mult=[1,1,1]",
    "tokenizer.groups=2",
    "tokenizer.vocab_size=16",
    "tokenizer.code_dim=4",
    "budget.images=192",
    "task.optimizer.lr=0.005",
    "pictures.every=null",
    "pictures.count=2",
    *FAST,
)
MULTI = (*TOKENIZER, "tokenizer=multi", "tokenizer.scales=[[1,1],[2,2]]", "discriminator.width=4", "loss.gan.start=64")
SINGLE = (*TOKENIZER, "tokenizer=single", "tokenizer.scales=[[2,2]]", "discriminator=none", "perceptual=none")
GENERATOR = (
    "task=generator",
    *DATA,
    "transformer.width=12",
    "transformer.depth=1",
    "transformer.heads=2",
    "budget.images=192",
    "pictures.count=4",
    *FAST,
)
TWO_RANKS = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
EVALUATE = ("n=16", "metrics.splits=2", "metrics.draws=2", "extractor.run=runs/judge")
TOKENS = "data.tokens=runs/tokens"

# name → (how it ends, at how many images, its training); resumed by the tests to their end
STOPPED: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "killed_tokenizer": ("killed", 128, (*MULTI, "checkpoint.every=32", "seed=5")),
    "asked_generator": ("asked", 80, (*GENERATOR, "order=next_scale", TOKENS, "seed=6")),
    "validating_generator": ("validating", 128, (*GENERATOR, "order=random", "tensorboard=true", "seed=7")),
    "asked_two_ranks": ("asked", 80, (*GENERATOR, "order=raster", "seed=8", *TWO_RANKS)),
}
ASKED_TO_STOP = 143  # exit code after SIGTERM


def varlab(*arguments: str, code: int = 0) -> None:
    """A command, which must end with this exit code."""
    from varlab.cli.main import main

    print("varlab", *arguments, flush=True)
    ended = main(list(arguments))
    assert ended == code, f"varlab {' '.join(arguments)} ended with {ended}"


def train(out: str, *overrides: str, code: int = 0) -> None:
    varlab("train", f"out=runs/{out}", *overrides, code=code)


# -- images --------------------------------------------------------------------------------------------------------------


def pictures() -> Iterator[tuple[str, str, bytes]]:
    """(class, name, PNG) of twenty digits each of four classes, 8×8."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    digits = load_digits()
    for label in range(4):
        for i in np.flatnonzero(digits.target == label)[:20]:
            buffer = io.BytesIO()
            Image.fromarray(np.round(digits.images[i] * (255 / 16)).astype(np.uint8)).save(buffer, format="PNG")
            yield "abcd"[label], f"{i:04d}", buffer.getvalue()


def write_folder(folder: Path) -> None:
    """A sub-folder a class, as ``source=folder`` reads it."""
    for label, name, png in pictures():
        (folder / label).mkdir(parents=True, exist_ok=True)
        (folder / label / f"{name}.png").write_bytes(png)


def write_foreign_tars(folder: Path) -> None:
    """Two tars as others write them: a PNG and a class number a sample, no index."""
    folder.mkdir(parents=True)
    every = list(pictures())[::2]
    for number, part in enumerate((every[:20], every[20:])):
        with tarfile.open(folder / f"{number:05d}.tar", "w") as tar:
            for label, name, png in part:
                for ending, content in (("png", png), ("cls", str("abcd".index(label)).encode())):
                    member = tarfile.TarInfo(f"{name}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))


# -- stopped runs --------------------------------------------------------------------------------------------------------


def stop(how: str, at: int, arguments: list[str]) -> int:
    """Run ``arguments`` in this process and stop it at so many images: ``killed``, ``asked`` or ``validating``."""
    from varlab.cli.main import main
    from varlab.tasks import Task
    from varlab.tasks.callbacks import Validation

    step, act = Task.training_step, Validation.act

    def training_step(task: Task, batch: object, batch_idx: int) -> object:
        if how != "validating" and task.images >= at:
            if how == "killed":
                os._exit(9)
            os.kill(os.getpid(), signal.SIGTERM)
        return step(task, batch, batch_idx)  # type: ignore[arg-type]

    def validate(callback: Validation, trainer: object, task: Task) -> None:
        if how == "validating" and task.images >= at:
            os.kill(os.getpid(), signal.SIGTERM)
        act(callback, trainer, task)  # type: ignore[arg-type]

    Task.training_step, Validation.act = training_step, validate  # type: ignore[method-assign]
    return main(arguments)


def train_and_stop(name: str) -> None:
    how, at, overrides = STOPPED[name]
    arguments = ["train", f"out=runs/stopped/{name}", *overrides]
    print(how, "varlab", *arguments, flush=True)
    if TWO_RANKS[0] in overrides:
        code = _ask_two_ranks(Path("runs/stopped") / name, at, arguments)
    else:
        code = subprocess.run([sys.executable, __file__, "stop", how, str(at), *arguments]).returncode
    assert code == (9 if how == "killed" else ASKED_TO_STOP), f"{name} ended with {code}"


def _ask_two_ranks(run: Path, at: int, arguments: list[str]) -> int:
    """The ranks are processes of their own, so the signal comes from outside, soon after that many images."""
    with subprocess.Popen([sys.executable, "-m", "varlab.cli.main", *arguments]) as process:
        while not ((run / "progress").exists() and int((run / "progress").read_text() or 0) >= at):
            assert process.poll() is None, f"{run} ended before it was asked to stop"
            time.sleep(0.002)
        process.send_signal(signal.SIGTERM)
        return process.wait(60)


# -- the whole set -------------------------------------------------------------------------------------------------------


def make() -> None:
    """Everything, under runs/ of the current folder."""
    import answers

    write_folder(Path("pictures"))
    write_foreign_tars(Path("runs/data/foreign"))
    varlab("pack", "source=folder", "path=pictures", "source.size=8", "condition=edges", "out=runs/data/letters")
    varlab("index", "runs/data/foreign", "val_fraction=0.25", "out=runs/index")
    train("judge", *CLASSIFIER, "role=judge", "seed=1")
    train("perceptual", *CLASSIFIER, "role=perceptual", "seed=2")
    train("multi", *MULTI)
    train("single", *SINGLE)
    train("edges/condition", *SINGLE, "data.view=condition", "seed=4")
    train("edges/generator", *GENERATOR, "order=raster", "condition=spatial", "tokenizer_run=runs/single")
    varlab("train", "-m", *GENERATOR, "name=orders", "order=next_scale,raster")
    varlab("train", "-m", *GENERATOR, "name=scaling", "order=next_scale", "transformer.width=4,8,12,16", "val.every=16")
    train("two_ranks", *GENERATOR, "order=raster", *TWO_RANKS)
    varlab("encode", "runs/multi", "views=2", "out=runs/tokens")
    for name in STOPPED:
        train_and_stop(name)
    train("diverged", *CLASSIFIER, "role=judge", "task.optimizer.lr=1.0e+30", "task.clip=null", code=1)
    next_scale, raster = (str(answers.of_order(order)) for order in ("next_scale", "raster"))
    import_official(next_scale, Path("official"))
    varlab("evaluate", "-m", f"run={next_scale},{raster}", *EVALUATE, "out=runs/evaluate")
    varlab("evaluate", "runs/single", *EVALUATE, "out=runs/evaluate/single")
    varlab("sample", next_scale, "n=8", "cfg=1.5", "out=runs/sample")
    varlab("edit", raster, "task=inpaint", "image=pictures/a/0000.png", "box=[0,0,1,0.5]", "n=2", "out=runs/edit")
    varlab("report", "runs", "out=runs/report")


def import_official(run: str, folder: Path) -> None:
    """A run, written as VAR's authors write theirs, and read again."""
    varlab("export", run, "format=var", f"out={folder}")
    files = (f"tokenizer={folder}/tokenizer.pth", f"transformer={folder}/transformer.pth")
    sizes = ("scales=[[1,1],[2,2]]", "heads=2", "groups=2", "classes=[a,b,c,d]")
    varlab("import", "format=var", *files, *sizes, "out=runs/imported")


def tidy(runs: Path) -> None:
    """Remove what no later command reads: pictures, pages, locks, and checkpoints of finished runs but one."""
    for path in sorted(runs.rglob("*"), reverse=True):
        finished = path.name == "last.ckpt" and (path.parent / "weights.safetensors").exists()
        if path.suffix in (".png", ".html", ".tmp") or path.name == ".lock" or (finished and "judge" not in str(path)):
            path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
    for folder in ("report", ".hydra"):  # the second holds the path of this folder
        shutil.rmtree(runs / folder)


def archive(runs: Path, file: Path) -> None:
    """One archive, the same bytes for the same files: sorted, dated 1970, owned by nobody."""

    def plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
        member.mtime, member.uid, member.gid, member.uname, member.gname = 0, 0, 0, "", ""
        return member

    with tarfile.open(file, "w:xz", preset=9) as tar:
        for path in sorted(runs.rglob("*")):
            if path.is_file():
                tar.add(path, path.relative_to(runs.parent), filter=plain)


ROOMS = ("data", "order", "sample", "tasks", "tokenizer", "transformer")


def targets(conf: Path) -> list[str]:
    """Every ``_target_`` under a conf folder and in the golden losses' still older configurations, the public classes that
    YAML can build, and where each is defined."""
    texts = [file.read_text() for file in (*conf.rglob("*.yaml"), conf.parent / "tests" / "golden" / "losses.json")]
    found = {name for text in texts for name in re.findall(r"_target_\"?: *\"?(varlab[\w.]+)", text)}
    for room in ROOMS:
        module = importlib.import_module(f"varlab.{room}")
        found |= {f"varlab.{room}.{name}" for name in module.__all__ if _is_built_by_keywords(getattr(module, name))}
    for name in list(found):
        module, _, attribute = name.rpartition(".")
        home = getattr(importlib.import_module(module), attribute)
        found.add(f"{home.__module__}.{home.__qualname__}")
    return sorted(found)


def _is_built_by_keywords(value: object) -> bool:
    if not inspect.isclass(value) or inspect.isabstract(value):
        return False
    parameters = inspect.signature(value).parameters.values()
    return bool(parameters) and all(p.kind is p.KEYWORD_ONLY for p in parameters)


def main() -> int:
    if sys.argv[1:2] == ["stop"]:
        return stop(sys.argv[2], int(sys.argv[3]), sys.argv[4:])
    import varlab as package

    platform.node = lambda: "laboratory"  # type: ignore[assignment]  # for run.json: no machine's name
    root = Path(package.__file__).parents[1]
    with tempfile.TemporaryDirectory() as folder:
        lab = Path(folder)
        os.chdir(lab)
        os.environ["PYTHONPATH"] = str(root)
        make()
        tidy(lab / "runs")
        archive(lab / "runs", HERE / "runs.tar.xz")
        import answers

        asked = {}
        for name, answer in answers.ALL.items():
            shutil.copytree(lab / "runs", lab / name / "runs")  # each is asked of untouched runs
            os.chdir(lab / name)
            begun = time.monotonic()
            asked[name] = answer()
            print(f"== {name}: {time.monotonic() - begun:.1f} s", flush=True)
    rows = (f"{json.dumps(name)}: {json.dumps(answer)}" for name, answer in asked.items())
    (HERE / "answers.json").write_text("{\n" + ",\n".join(rows) + "\n}\n")
    (HERE / "targets.txt").write_text("\n".join(targets(root / "conf")) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
