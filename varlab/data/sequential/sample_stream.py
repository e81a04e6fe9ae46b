"""The samples of shards that are read as they come: webdataset's pipeline, in order or endlessly shuffled."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence

from webdataset.filters import shuffle
from webdataset.pipeline import DataPipeline

from varlab.data.faults import BadSampleError, FaultCounter, describe_faults
from varlab.data.format.labels import NO_LABEL, json_fields, numbering, read_label
from varlab.data.image.crop import BoxOf
from varlab.data.image.decode import U8, decode_into
from varlab.data.image.picture import PixelRules
from varlab.data.image.png import check_png
from varlab.data.sequential.shard_samples import BAD, IMAGE, INCOMPLETE, EncodedSample, ShardSamples
from varlab.errors import VarlabError
from varlab.types import Fault

__all__ = ["EncodedSample", "SampleDecoder", "SampleStream"]

_MOST_EMPTY = 16  # shards in a row without a sample, after which reading stops
_MOST_BAD = 1000  # bad samples in a row, likewise


class SampleDecoder:
    """Decodes a sample: its label, and a part of its image.

    classes: how many there are, or their names in label order. label: where to find labels, see ``read_label``; "none" gives
    every sample the first class. rules: how images become pixels.

    Raises:
        VarlabError: there are no classes, two have one name, or ``label`` is unknown.
    """

    def __init__(self, *, classes: int | Sequence[str], label: str, rules: PixelRules):
        self.classes = tuple(map(str, range(classes) if isinstance(classes, int) else classes))
        self._number = numbering(self.classes, missing=NO_LABEL)
        if not self.classes or len(set(self.classes)) < len(self.classes):
            raise VarlabError(f"data.classes={classes} must be how many classes there are, or a list of their names.")
        source, _, field = label.partition(":")
        if label not in ("auto", "cls", "none") and not (source == "json" and field):
            raise VarlabError(f"data.label={label} is unknown: use cls, json:FIELD, none or auto.")
        self.label, self.rules = label, rules

    def __call__(self, sample: EncodedSample, box_of: BoxOf, out_HW3: U8) -> int:
        """Write the part of the image that ``box_of`` chooses into ``out_HW3``, and return the label.

        Raises:
            BadSampleError: the image or the label is missing or bad.
        """
        if (bad := sample.get(BAD)) is not None:
            raise BadSampleError(bad.kind, bad.detail)
        number = 0
        if self.label != "none":
            number = self._number(read_label(sample.get("cls"), json_fields(sample.get("json")), self.label))
        check_png(sample[sample[IMAGE]])
        decode_into(out_HW3, sample[sample[IMAGE]], box_of, self.rules)
        return number


class SampleStream:
    """The samples of some shards, read one after another in this process.

    name: the setting that names the shards. n: samples in all of them, as far as is known. timeout: see ``Patience``.
    expected: counts the faults of this process, so that it stops as soon as they are too many.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        name: str,
        n: int,
        decoder: SampleDecoder,
        timeout: float,
        expected: FaultCounter,
    ):
        self.name, self._urls, self._decoder, self._expected = name, urls, decoder, expected
        self._faults: list[Fault] = []
        self._shards = ShardSamples(note=self._note, mean=n // len(urls), timeout=timeout)
        self._bad_in_a_row = 0

    @property
    def any_broken(self) -> bool:
        """Whether a shard was missing, or broke off."""
        return self._shards.any_broken

    def once(self) -> Iterator[EncodedSample]:
        """All samples, in order.

        Raises:
            VarlabError: many shards in a row hold no samples.
        """
        return self._pipeline(self._urls)

    def endless(self, *, seed: int, buffer: int) -> Iterator[EncodedSample]:
        """Pass after pass, each over the shards in a new order; webdataset's buffer of that many samples shuffles them.

        Raises:
            VarlabError: many shards in a row hold no samples.
        """
        order, mix = random.Random(f"{seed}/shards"), random.Random(f"{seed}/samples")

        def urls() -> Iterator[str]:
            while True:
                yield from order.sample(self._urls, len(self._urls))

        return self._pipeline(urls(), *([shuffle(buffer, rng=mix)] if buffer else []))

    def decode(self, sample: EncodedSample, box_of: BoxOf, out_HW3: U8) -> int | None:
        """Write the sample's image into ``out_HW3`` and return its label; None, and a fault, if it is bad.

        Raises:
            VarlabError: very many bad samples in a row.
        """
        try:
            label = self._decoder(sample, box_of, out_HW3)
        except BadSampleError as bad:
            # what an incomplete sample lacks is counted with its shard
            if not (INCOMPLETE in sample and bad.kind.startswith("no_")):
                lost = getattr(sample.get(BAD), "samples", 1)
                self._faults.append(Fault(bad.kind, sample["__url__"], sample["__key__"], bad.detail, samples=lost))
            self._bad_in_a_row += 1
            if self._bad_in_a_row == _MOST_BAD:
                raise VarlabError(
                    f"{_MOST_BAD} samples in a row of {self.name} are bad ({self._last(_MOST_BAD)}): repair them."
                ) from bad
            return None
        self._bad_in_a_row = 0
        return label

    def _note(self, fault: Fault) -> None:
        self._faults.append(fault)
        self._expected.expect([fault])

    def take_faults(self) -> tuple[Fault, ...]:
        """The faults since the last call."""
        taken = tuple(self._faults)
        self._faults.clear()
        return taken

    def _pipeline(self, urls: Iterable[str], *stages: Callable[..., object]) -> Iterator[EncodedSample]:
        return iter(DataPipeline(lambda: self._until_empty(urls), self._shards, *stages))

    def _until_empty(self, urls: Iterable[str]) -> Iterator[str]:
        """The URLs; an endless stream must not go on forever without a sample."""
        most = min(_MOST_EMPTY, max(len(self._urls), 3))
        for url in urls:
            empty = self._shards.empty_in_a_row
            if empty == most:
                why = f" ({self._last(empty)})" if self._faults else ""
                raise VarlabError(f"{empty} shards in a row of {self.name} hold no samples{why}: correct it.")
            yield url

    def _last(self, count: int) -> str:
        """The last faults, each once."""
        return describe_faults([*dict.fromkeys(self._faults[-count:])])
