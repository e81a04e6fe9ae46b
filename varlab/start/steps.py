"""The steps of a start as ordinary commands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from varlab.config import Config, shell_word
from varlab.info import DataInfo
from varlab.recipe.preflight.fitted_settings import fitted_batch
from varlab.start.machine import Machine

__all__ = ["Step", "Steps", "tokenizer_of"]

_CACHE = 1 << 30  # bytes of decoded images that data=folder keeps in memory
_NETWORKS = {"judge": (), "perceptual": ("role=perceptual", "seed=1")}


@dataclass(frozen=True, kw_only=True)
class Step:
    """One command. name: of its folder, and in messages. words: its arguments, as they are typed. images: of a training."""

    name: str
    words: tuple[str, ...]
    images: int = 0
    batch: int = 1

    @property
    def command(self) -> str:
        """The command as a shell takes it."""
        return " ".join(["varlab", *map(shell_word, self.words)])


def tokenizer_of(order: str) -> str:
    """The kind of tokenizer that an order needs."""
    return "multi" if order == "next_scale" else "single"


class Steps:
    """Makes the steps of one start. config: ``conf/start.yaml``. out: the folder of everything. info: of the packed images."""

    def __init__(self, config: Config, out: Path, machine: Machine, info: DataInfo):
        self._config, self._out, self._machine, self._info = config, out, machine, info
        self._rules = config[machine.kind]
        self.unconditional = info.num_classes < 2
        self.train_images = info.counts["train"]

    @staticmethod
    def pack(config: Config, out: Path) -> Step:
        """Images into shards."""
        words = ("pack", "source=folder", f"path={config['folder']}", f"source.size={config['size']}")
        return Step(name="data", words=(*words, f"out={out / 'data'}"))

    def network(self, role: str, images: int, *, at_once: int) -> Step:
        """The judge, or the perceptual network."""
        task = "task=rotation" if self.unconditional else "task=classifier"
        return self._training(role, "classifier", (task, *_NETWORKS[role]), images, at_once)

    def tokenizer(self, kind: str, images: int, *, at_once: int) -> Step:
        """A tokenizer of several scales (multi), or of one (single)."""
        words = (
            f"tokenizer={kind}",
            f"tokenizer.vocab_size={self.vocabulary}",
            f"perceptual.run={self._out / 'perceptual'}",
        )
        return self._training(f"tokenizer/{kind}", "tokenizer", ("task=tokenizer", *words), images, at_once)

    def generator(self, order: str, images: int, *, at_once: int) -> Step:
        """A transformer that predicts tokens in an order."""
        words = (f"order={order}", f"tokenizer_run={self._out / 'tokenizer' / tokenizer_of(order)}", *self._sampler())
        seed = (f"seed={self._config['seed']}",) if self._config["seed"] else ()
        return self._training(f"generator/{order}", "generator", ("task=generator", *words, *seed), images, at_once)

    def scores(self, run: str, samples: int, *, at_once: int) -> Step:
        """Scores of a tokenizer or a generator. run: its name."""
        of_generator = run.startswith("generator")
        words = (
            (f"n={samples}", "labels=data")
            if of_generator and not self.unconditional
            else (f"n={samples}",)
            if of_generator
            else ()
        )
        judge = f"extractor.run={self._out / 'judge'}"
        return self._reading("evaluate", f"scores/{run}", run, (judge, *words), at_once)

    def samples(self, order: str, images: int, *, at_once: int) -> Step:
        """A grid of pictures."""
        words = (f"n={images}", f"shown={images}")
        return self._reading("sample", f"samples/{order}", f"generator/{order}", words, at_once)

    def report(self) -> Step:
        """The page about all runs."""
        title = f"title={Path(self._config['folder']).resolve().name}"
        return Step(name="report", words=("report", str(self._out), title, f"out={self._out}"))

    def trial(self, step: Step, images: int, *, log_every: int, kept: bool = True) -> Step:
        """The first images of a training. kept: False for one in a folder of its own, whose updates encode their images."""
        extra: tuple[str, ...] = ("val.skip=true", "pictures.count=1", f"log.every={log_every}")
        words = [f"budget.images={images}" if word.startswith("budget.images=") else word for word in step.words]
        name = step.name
        if not kept:
            name = f".trial/{step.name}"
            words = [f"out={self._out / name}" if word.startswith("out=") else word for word in words]
            extra += ("encode_once=false",)
        return replace(step, name=name, words=(*words, *extra), images=images)

    def batch(self, kind: str) -> int:
        """The batch of a kind of training: the machine's, or less for a small set."""
        most: int = self._rules["batch"][kind]
        return min(most, fitted_batch(self.train_images))

    @property
    def vocabulary(self) -> int:
        """The number of codes for so many training images."""
        lines = self._config["codes"]
        return next(int(line["vocab_size"]) for line in lines if self.train_images <= line["images"])

    @property
    def grid_images(self) -> int:
        """Samples of the grid."""
        grid, classes = self._config["grid"], self._info.num_classes
        return int(grid["images"]) if self.unconditional else int(grid["rows"]) * classes

    def _training(self, name: str, kind: str, words: Sequence[str], images: int, at_once: int) -> Step:
        batch = self.batch(kind)
        data = ["data=folder", f"data.path={self._out / 'data'}", f"data.batch={batch}"]
        if 3 * self._config["size"] ** 2 * self.train_images <= _CACHE:
            data.append("data.workers=0")  # the images lie decoded in memory
        if self._config["flip"]:
            data.append("data.augment.flip=true")
        here = [f"trainer={self._machine.kind}"] if self._machine.kind != "cpu" else []
        if (threads := self._threads(at_once)) > 1:
            here.append(f"trainer.threads={threads}")
        length = [f"task.schedule.warmup={self._config['warmup'] * batch}", f"budget.images={images}"]
        out = f"out={self._out / name}"
        all_words = ("train", *words, *data, *self._rules[kind], *length, *here, out)
        return Step(name=name, words=all_words, images=images, batch=batch)

    def _reading(self, command: str, name: str, run: str, words: Sequence[str], at_once: int) -> Step:
        threads = self._threads(at_once)
        here = (f"threads={threads}",) if threads > 1 else ()
        return Step(name=name, words=(command, str(self._out / run), *words, *here, f"out={self._out / name}"))

    def _threads(self, at_once: int) -> int:
        return self._machine.threads(at_once, self._rules["threads"])

    def _sampler(self) -> list[str]:
        words: list[str] = self._config["sampler"]["unconditional" if self.unconditional else "conditional"]
        return words
