"""The samples of shards that are read as they come: webdataset's pipeline, once in order or endlessly and shuffled."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any

from webdataset.filters import pipelinefilter, shuffle
from webdataset.pipeline import DataPipeline
from webdataset.tariterators import base_plus_ext, group_by_keys

from varlab.config import Config
from varlab.data.faults import BadSampleError, describe_faults
from varlab.data.format.labels import NO_LABEL, json_fields, numbering, read_label
from varlab.data.format.table import FORMATS
from varlab.data.image.decode import U8, BoxOf, decode_into
from varlab.data.unindexed.members import TORN, Untar
from varlab.errors import VarlabError
from varlab.types import Fault

__all__ = ["Flow", "Opened", "Sample"]

Sample = Config
"""The members of a sample by their endings, encoded; ``__key__`` and ``__url__``."""

_SHARDS = 16  # in a row without a single sample: there is nothing to be read
_SAMPLES = 1000  # the same of samples without one that can be decoded


class Opened:
    """What becomes of a sample: its label, and a part of its picture.

    classes: how many, or their names in label order. label: where labels are told, see ``read_label``; none: all are of the
    first class. most_pixels: larger images are bad.

    Raises:
        VarlabError: no classes, two of one name, or an unknown ``label``.
    """

    def __init__(self, *, classes: int | Sequence[str], label: str, most_pixels: int):
        self.names = tuple(map(str, range(classes) if isinstance(classes, int) else classes))
        self._numbered = numbering(self.names, missing=NO_LABEL)
        if not self.names or len(set(self.names)) < len(self.names):
            raise VarlabError(f"data.classes={classes} must be how many classes there are, or a list of their names.")
        source, _, field = label.partition(":")
        if label not in ("auto", "cls", "none") and not (source == "json" and field):
            raise VarlabError(f"data.label={label} is unknown: use cls, json:FIELD, none or auto.")
        self._label, self._most_pixels = label, most_pixels

    def __call__(self, sample: Sample, box_of: BoxOf, out_HW3: U8) -> int:
        """The label; ``box_of`` (height, width) chooses what is written into ``out_HW3``.

        Raises:
            BadSampleError: no image or label, or one that is bad.
        """
        ending = next((e for e in sample if e in FORMATS), None)
        if ending is None:
            members = ", ".join(e for e in sample if not e.startswith("__"))
            raise BadSampleError("no_image", f"none of {', '.join(FORMATS)}, only {members}")
        number = 0
        if self._label != "none":
            found = read_label(sample.get("cls"), json_fields(sample.get("json")), self._label)
            number = self._numbered(found)
        decode_into(out_HW3, sample[ending], FORMATS[ending], box_of, most_pixels=self._most_pixels)
        return number


class Flow:
    """The samples of some shards, one after another, in this process.

    name: of the setting that names the shards. n: samples in all of them, as far as is known. faults: what was found to be
    wrong since they were last taken.
    """

    def __init__(self, urls: Sequence[str], *, name: str, n: int):
        self.faults: list[Fault] = []
        self._urls, self.name = urls, name
        self._untar = Untar(faults=self.faults, mean=n // len(urls))
        self._most_dry = min(_SHARDS, max(len(urls), 3))
        self._dry = self._bad = 0  # shards, samples in a row

    @property
    def broken(self) -> bool:
        """Whether a shard was missing, or broke off."""
        return self._untar.broken

    def once(self) -> Iterator[Sample]:
        """All of them, in order.

        Raises:
            VarlabError: many shards in a row without one.
        """
        return iter(self._pipeline([self._urls]))

    def endless(self, *, seed: int, buffer: int) -> Iterator[Sample]:
        """For ever: pass after pass, each over the shards in an order of its own, samples mixed by webdataset's buffer of so
        many (0 leaves them as they lie).

        Raises:
            VarlabError: many shards in a row without one.
        """
        order, mix = random.Random(f"{seed}/shards"), random.Random(f"{seed}/samples")
        passes = (order.sample(self._urls, len(self._urls)) for _ in iter(int, 1))
        return iter(self._pipeline(passes, *([shuffle(buffer, rng=mix)] if buffer else [])))

    def open(self, sample: Sample, opened: Opened, box_of: BoxOf, out_HW3: U8) -> int | None:
        """The sample's label, its picture written into ``out_HW3``; None where it is bad, which goes to the faults.

        Raises:
            VarlabError: very many bad ones in a row.
        """
        try:
            label = opened(sample, box_of, out_HW3)
        except BadSampleError as bad:
            if not (TORN in sample and bad.kind.startswith("no_")):  # what it lacks was lost with its shard
                self.faults.append(Fault(bad.kind, sample["__url__"], sample["__key__"], bad.detail))
            self._bad += 1
            if self._bad == _SAMPLES:
                raise VarlabError(
                    f"{_SAMPLES} samples in a row of {self.name} are bad ({self._last(_SAMPLES)}): mend them."
                ) from bad
            return None
        self._bad = 0
        return label

    def take(self) -> tuple[Fault, ...]:
        """The faults until now, each handed out once."""
        taken = tuple(self.faults)
        self.faults.clear()
        return taken

    def _pipeline(self, passes: Iterable[Sequence[str]], *more: Callable[..., Any]) -> DataPipeline:
        grouped = pipelinefilter(group_by_keys)(handler=self._twice)
        return DataPipeline(lambda: self._shards(chain.from_iterable(passes)), self._untar, grouped, self._wet, *more)

    def _shards(self, urls: Iterable[str]) -> Iterator[dict[str, str]]:
        """The shards as webdataset hands them on; ends a flow that would go on for ever without a sample."""
        for url in urls:
            if self._dry == self._most_dry:
                why = f" ({self._last(self._dry)})" if self.faults else ""
                raise VarlabError(f"{self._dry} shards in a row of {self.name} hold no samples{why}: correct it.")
            self._dry += 1
            yield {"url": url}

    def _last(self, count: int) -> str:
        """The last faults, each once."""
        return describe_faults([*dict.fromkeys(self.faults[-count:])])

    def _wet(self, samples: Iterable[Sample]) -> Iterator[Sample]:
        for sample in samples:
            self._dry = 0
            yield sample

    def _twice(self, error: Exception) -> bool:
        """webdataset's handler of a member that comes twice in its sample: the first counts."""
        name = str(error.args[0]).partition(": ")[0]
        key, ending = base_plus_ext(name)
        self.faults.append(Fault("duplicate", self._untar.url, key or name, f"two members {ending}"))
        return True
