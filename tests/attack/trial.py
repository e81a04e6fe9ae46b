"""One case: an honest file is damaged and read by the package's own reader, and what happened gets one of nine names."""

from __future__ import annotations

import codecs
import logging
import os
import resource
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from random import Random
from types import FrameType

from PIL import Image

from tests.attack.audit import Deeds, watched
from tests.attack.damage import BYTES, Damage, other_kind
from varlab.data.faults import BadSampleError
from varlab.errors import VarlabError

__all__ = ["BAD", "KINDS", "WAITING", "Format", "Reading", "Result", "Trial"]

KINDS = ("right", "refused", "named", "as it says", "wrong", "hang", "executed", "outside", "traceback")
"""right: the honest value. refused: by a sentence that names the file. named: the rest is right, and a fault or a warning says
what is not. as it says: a file without a digest says something else, and is read so."""

BAD = KINDS[4:]
"""What must not happen."""

Reading = tuple[Mapping[str, object], bool]
"""What a reader found, by name; and whether it named a fault."""

WAITING = 6
"""How much longer a case may wait than work: other processes may need the machine."""

_MEMORY = 3 << 30  # bytes that a case may take, beside what the process has
_OTHER_KIND = 0.03  # share of the cases in which something else stands in the place of the file


@dataclass(frozen=True)
class Format:
    """A format that varlab reads.

    make: writes an honest folder. read: reads it by the package's own reader. files: patterns of the files that are damaged.
    damage: draws and does it. verified: whether another value than the honest one is wrong; False for files that say what
    they mean without a digest. partial: whether what is missing counts as read right, because no file says what should be
    there. after: done to the folder after the damage. plant: makes the directory of a number, in place of a damage. place:
    by which a sentence may name the file, too. lingers: whether threads may go on after a case. other_kinds: whether pipes
    and the like stand in the file's place, too. cases: of a whole attack. seconds: of work for a case.
    """

    name: str
    make: Callable[[Path], None]
    read: Callable[[Path], Reading]
    files: tuple[str, ...] = ()
    damage: Damage = BYTES
    verified: bool = True
    partial: bool = False
    after: Callable[[Path], None] | None = None
    plant: Callable[[int, Path], None] | None = None
    place: str = ""
    lingers: bool = False
    other_kinds: bool = True
    cases: int = 150
    seconds: float = 20


@dataclass(frozen=True)
class Result:
    """What a case came to: one of ``KINDS``, and the evidence."""

    kind: str
    detail: str = ""


class _Hang(BaseException):
    """The case takes too long. No Exception, so that no reader takes it for its own."""


class _Warnings(logging.Handler):
    """Counts the warnings of the package."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.count = 0

    def emit(self, record: logging.LogRecord) -> None:
        self.count += 1


class Trial:
    """The cases of one format, in a folder of its own: honest/, a/b/case/ (the only one that may change) and outside/."""

    def __init__(self, form: Format, folder: Path):
        self.form, self._root = form, folder.resolve()
        self._honest, self._case = self._root / "honest", self._root / "a" / "b" / "case"
        for path in (self._honest, self._case.parent, self._root / "outside"):
            path.mkdir(parents=True)
        Image.init()  # imports the reader of every format, which only a damaged picture would need
        for encoding in ("utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"):
            codecs.lookup(encoding)  # by which JSON may be written
        form.make(self._honest)
        self._reset()
        with watched() as deeds, self._beside():
            self._value, named = form.read(self._case)
        assert self._value and not named, f"the honest {form.name} is not read right"
        self._known = deeds.executed
        self._outside = self._listing()

    def run(self, number: int, seed: int = 0) -> Result:
        """Damage and read once. number, seed: which damage."""
        self._reset()
        rng = Random(f"{seed}/{self.form.name}/{number}")
        damaged = self._damage(rng, number)
        with watched() as deeds, self._beside():
            result = self._read(damaged)
        return self._done(deeds) or result

    def _reset(self) -> None:
        shutil.rmtree(self._case, ignore_errors=True)
        shutil.copytree(self._honest, self._case, symlinks=True)

    def _damage(self, rng: Random, number: int) -> Path:
        if self.form.plant is not None:
            self.form.plant(number, self._case)
            return self._case / "runs" / "evil" / "run.json"
        path = rng.choice(
            sorted(
                file
                for pattern in self.form.files
                for file in self._case.glob(pattern)
                if file.is_file() and file.stat().st_size
            )
        )
        if self.form.other_kinds and rng.random() < _OTHER_KIND:
            other_kind(rng, path)
        else:
            self.form.damage(rng, path)
        if self.form.after is not None:
            self.form.after(self._case)
        return path

    @contextmanager
    def _beside(self) -> Iterator[None]:
        """In the case's folder, with bounded memory, and without the package's words on the terminal."""
        before = Path.cwd()
        limits = resource.getrlimit(resource.RLIMIT_AS)
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        os.chdir(self._case)
        resource.setrlimit(resource.RLIMIT_AS, (size + _MEMORY, limits[1]))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                yield
        finally:
            resource.setrlimit(resource.RLIMIT_AS, limits)
            os.chdir(before)

    def _read(self, damaged: Path) -> Result:
        noted = _Warnings()
        logger = logging.getLogger("varlab")
        logger.addHandler(noted)
        try:
            with _bounded_time(self.form.seconds):
                value, named = self.form.read(self._case)
            return self._compare(value, named=named or noted.count > 0)
        except VarlabError as error:
            inside = damaged.relative_to(self._case)
            return _sentence(
                str(error), {damaged.name, str(self._case), str(inside.parent), self.form.place} - {".", ""}
            )
        except BadSampleError as error:
            return Result("named", str(error))
        except _Hang:
            return Result("hang", _where())
        except BaseException:
            return Result("traceback", traceback.format_exc())
        finally:
            logger.removeHandler(noted)

    def _compare(self, value: Mapping[str, object], *, named: bool) -> Result:
        wrong = {name: item for name, item in value.items() if self._value.get(name) != item}
        missing = self._value.keys() - value.keys()
        if not wrong and not missing:
            return Result("named" if named else "right")
        if not self.form.verified:
            return Result("named" if named else "as it says")
        if wrong:
            return Result("wrong", f"read {str(wrong)[:500]}, not {str({n: self._value.get(n) for n in wrong})[:500]}")
        return (
            Result("named")
            if named or self.form.partial
            else Result("wrong", f"{sorted(missing)} vanished without a word")
        )

    def _done(self, deeds: Deeds) -> Result | None:
        """The worst that was done beside reading."""
        if new := deeds.executed - self._known:
            return Result("executed", str(sorted(new))[:1000])
        if outside := deeds.outside(self._case):
            return Result("outside", str(sorted(outside))[:1000])
        if self._listing() != self._outside:
            return Result("outside", str(self._listing() ^ self._outside))
        return None

    def _listing(self) -> set[Path]:
        """Everything beside the case's own folder."""
        found = set[Path]()
        for folder, folders, files in os.walk(self._root):
            if Path(folder) != self._case.parent:
                found |= {Path(folder) / name for name in [*folders, *files]}
            else:
                folders.remove(self._case.name)
                found |= {Path(folder) / name for name in files + folders}
        return found


@contextmanager
def _bounded_time(seconds: float) -> Iterator[None]:
    """Raise _Hang in the body after so many seconds of work, or ``WAITING`` times as many of waiting."""
    timers = (
        (signal.SIGPROF, signal.ITIMER_PROF, seconds),
        (signal.SIGALRM, signal.ITIMER_REAL, WAITING * seconds),
    )
    before = [signal.signal(number, _ring) for number, _, _ in timers]
    for _, timer, after in timers:
        signal.setitimer(timer, after)
    try:
        yield
    finally:
        for (number, timer, _), handler in zip(timers, before, strict=True):
            signal.setitimer(timer, 0)
            signal.signal(number, handler)


def _ring(number: int, frame: FrameType | None) -> None:
    raise _Hang


def _where() -> str:
    """Where a case hung."""
    error = sys.exc_info()[2]
    return "".join(traceback.format_tb(error)[-6:])


def _sentence(text: str, named: set[str]) -> Result:
    """A refusal must say in one line which file it is about."""
    if not any(name in text for name in named):
        return Result("traceback", f"the sentence names no file: {text}")
    if "\n" in text or len(text) > 2000:
        return Result("traceback", f"this is no line: {text[:1000]!a}")
    return Result("refused", text)
