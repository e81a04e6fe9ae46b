"""How well a classifier does on held-out images: the ground that scores and losses in its features stand on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from varlab.config import Config

__all__ = ["HeldOutAccuracy"]

_LEVEL = 0.05
"""How probable an accuracy may be for a network that learned nothing, and still count as learned."""

_KINDS: Mapping[str, type | tuple[type, ...]] = {
    "predicts": str,
    "baseline": str,
    "accuracy": (int, float),
    "majority": (int, float),
    "images": int,
}


@dataclass(frozen=True, kw_only=True)
class HeldOutAccuracy:
    """A classifier's accuracy on held-out images, beside that of a guess that looks at no image.

    predicts: what it predicts (labels, rotation). baseline: the name of the guess. accuracy, majority: of the classifier and
    of the guess, shares of right answers; None where the run did not record them. images: how many were held out.
    """

    predicts: str = "labels"
    baseline: str = "majority class"
    accuracy: float | None = None
    majority: float | None = None
    images: int = 0

    @classmethod
    def from_json(cls, values: Mapping[str, object]) -> HeldOutAccuracy:
        """Read ``to_json``'s result; unknown keys, and values of another type, are left out."""
        known: Config = {f.name: values[f.name] for f in fields(cls) if isinstance(values.get(f.name), _KINDS[f.name])}
        return cls(**known)

    def to_json(self) -> Config:
        """The numbers, a sentence that says them, and a warning if there is one."""
        warning = self.warning
        return asdict(self) | {"summary": str(self)} | ({"warning": warning} if warning else {})

    @property
    def learned(self) -> bool | None:
        """Whether the accuracy is above the guess's by more than chance; None where it is not recorded.

        An exact binomial test at 5%: a network that is right as often as the guess reaches its accuracy that seldom.
        """
        if self.accuracy is None or self.majority is None:
            return None
        from scipy.special import bdtrc  # slow to import, and most commands read no judge

        right = round(self.accuracy * self.images)
        return bool(bdtrc(right - 1, self.images, min(self.majority, 1.0)) < _LEVEL)

    @property
    def warning(self) -> str:
        """What a reader of scores in these features must know; empty if the network has learned its task."""
        if self.learned is not False:
            return ""
        return (
            f"The network that predicts {self.predicts} is no better than {self.baseline} on held-out images "
            f"({self._numbers}): FID and other numbers in its features mean little."
        )

    def __str__(self) -> str:
        if self.accuracy is None or self.majority is None:
            return f"features of a network that predicts {self.predicts}; its held-out accuracy was not recorded"
        return f"features of a network that predicts {self.predicts}; {self._numbers}"

    @property
    def _numbers(self) -> str:
        return (
            f"held-out accuracy {self.accuracy:.3f}, {self.baseline} {self.majority:.3f}, "
            f"{self.images} image{'' if self.images == 1 else 's'}"
        )
