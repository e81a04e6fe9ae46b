"""The machine on which a start runs: whether it has a GPU, and how many commands it runs at a time."""

from __future__ import annotations

from dataclasses import dataclass

from varlab.errors import VarlabError
from varlab.run.provenance import cores

__all__ = ["Machine"]

_LANES = 2  # commands at a time: more would share the memory of a laptop, or one GPU


@dataclass(frozen=True)
class Machine:
    """kind: cpu or gpu. cores: that this process may use."""

    kind: str
    cores: int

    @classmethod
    def here(cls, asked: str) -> Machine:
        """This machine, with the kind that was asked for. Raises VarlabError for an unknown kind."""
        if asked not in ("auto", "cpu", "gpu"):
            raise VarlabError(f"machine={asked} is unknown: use auto, cpu or gpu.")
        return cls(_kind() if asked == "auto" else asked, cores())

    @property
    def lanes(self) -> int:
        """Commands at a time."""
        return min(_LANES, self.cores)

    def threads(self, at_once: int, most: int) -> int:
        """Threads of each of the commands that run at once."""
        return max(1, min(self.cores // max(at_once, 1), most))

    def __str__(self) -> str:
        return f"{'a GPU' if self.kind == 'gpu' else 'the CPU'}, {self.cores} core{'' if self.cores == 1 else 's'}"


def _kind() -> str:
    import torch

    return "gpu" if torch.cuda.is_available() else "cpu"
