"""What a start has decided, measured and done: ``start.json``, from which the same command resumes."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from varlab.config import Config
from varlab.errors import VarlabError
from varlab.json_file import read_json, write_sealed_json
from varlab.start.pace import Pace

__all__ = ["History"]

_FILE = "start.json"


@dataclass(kw_only=True)
class History:
    """asked: the settings. spent: seconds of all calls. paces: what trials measured, by the name of a training. numbers: images
    of each training and samples of the scores, once decided. done: the finished commands. seconds: of each, by its name.
    """

    asked: Config
    spent: float = 0.0
    paces: dict[str, Config] = field(default_factory=dict)
    numbers: dict[str, int] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    seconds: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, out: Path, asked: Config) -> History:
        """The history in a folder, empty for a new one. Raises VarlabError if it was started with other settings."""
        file = out / _FILE
        if not file.is_file():
            return cls(asked=asked)
        try:
            history = cls(**read_json(file))
        except TypeError as error:
            raise VarlabError(f"{file} is not what varlab start writes ({error}): use another out=.") from None
        for key in sorted(asked.keys() | history.asked.keys()):
            if asked.get(key) != history.asked.get(key):
                raise VarlabError(
                    f"{out} was started with {key}={history.asked.get(key)}, not {asked.get(key)}: give the same settings to "
                    "resume it, or another out=."
                )
        return history

    def pace(self, name: str) -> Pace | None:
        """What a trial measured; None before it."""
        return Pace(**self.paces[name]) if name in self.paces else None

    def decide(self, name: str, number: int) -> None:
        """Keep the first decision: a resumed start makes the same runs."""
        self.numbers.setdefault(name, number)

    def write(self, out: Path) -> None:
        """Keep it."""
        write_sealed_json(out / _FILE, asdict(self))
