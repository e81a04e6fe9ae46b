"""The clock: every moment belongs to one part, and what was watched is as it was before."""

from __future__ import annotations

import mmap
import time
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from varlab import processor
from varlab.bench.clock import measure
from varlab.bench.device import datasheet_rate, product, resolved, settings_of
from varlab.bench.peak_memory import held, peak, reset_peak
from varlab.bench.timeline import Timeline
from varlab.bench.work import REST, Part, Work
from varlab.cli.app import conf_dir
from varlab.types import VarlabError

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Steps:
    """Busy for 10 ms outside and 20 ms inside."""

    def outer(self) -> None:
        spin(0.01)
        self.inner()

    def inner(self) -> None:
        spin(0.02)


def spin(seconds: float) -> None:
    start = time.process_time()
    while time.process_time() - start < seconds:
        pass


@pytest.mark.parametrize("closed", [False, True])
def test_time_belongs_to_the_innermost_part(closed: bool) -> None:
    steps, timeline = Steps(), Timeline(CPU)
    parts = [Part(name="outer", owner=steps, method="outer", closed=closed)]
    parts += [Part(name="inner", owner=steps, method="inner")]
    with timeline.watched(parts):
        timeline.start()
        start = time.process_time()
        steps.outer()
        spin(0.005)
        whole = time.process_time() - start
        cpu = {name: seconds for name, (_, seconds) in timeline.stop().items()}
    assert not vars(steps)
    assert cpu[REST] == pytest.approx(0.005, abs=0.004)
    assert cpu["outer"] == pytest.approx(0.03 if closed else 0.01, abs=0.004)
    assert cpu.get("inner", 0) == pytest.approx(0 if closed else 0.02, abs=0.004)
    assert sum(cpu.values()) == pytest.approx(whole, abs=0.001)


def test_a_method_that_raises_is_no_longer_watched() -> None:
    def fail() -> None:
        raise ValueError("here")

    owner, timeline = SimpleNamespace(fail=fail), Timeline(CPU)
    timeline.start()
    with pytest.raises(ValueError, match="here"), timeline.watched([Part(name="a", owner=owner, method="fail")]):
        owner.fail()
    assert owner.fail is fail and set(timeline.stop()) == {REST, "a"}


def test_works_take_turns_in_every_round() -> None:
    calls: list[str] = []
    works = [Work(name=name, turn=lambda name=name: calls.append(name) or 3) for name in "ab"]  # type: ignore[misc]
    rounds = measure(works, device=CPU, rounds=2, seconds=0)
    assert calls == [*"aabb", *"abab"] and [[r.images for r in of] for of in rounds] == [[3, 3], [3, 3]]


def test_the_peak_of_memory_is_of_the_work_alone() -> None:
    touch(1 << 27)  # before
    reset_peak(CPU)
    before = held(CPU)
    touch(1 << 26)
    assert 60e6 < peak(CPU) - before < 80e6


def touch(size: int) -> None:
    """Hold so many bytes of the system for a moment: malloc would give memory that other tests have freed."""
    with mmap.mmap(-1, size) as memory:
        for first in range(0, size, mmap.PAGESIZE):
            memory[first] = 1


def test_settings_are_restored() -> None:
    config = {"threads": 1, "precision": "bf16-mixed", "deterministic": True}
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    with settings_of(config, CPU):
        assert torch.is_autocast_enabled("cpu") and torch.are_deterministic_algorithms_enabled()
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before
    assert not torch.is_autocast_enabled("cpu")


def test_a_precision_that_is_not_measured_is_refused() -> None:
    assert resolved("auto", CPU) in ("32-true", "bf16-mixed")
    for asked in ("16-mixed", "tf32"):
        with pytest.raises(VarlabError, match=f"precision={asked} is not measured"):
            resolved(asked, CPU)


def test_the_table_of_cards_is_whole() -> None:
    cards = OmegaConf.to_container(OmegaConf.load(conf_dir() / "cards.yaml"))
    assert all(set(card) == {"names", "bf16", "fp16", "tf32", "fp32", "source"} and card["source"] for card in cards)
    names = [name for card in cards for name in card["names"]]
    assert len(names) == len(set(names))
    assert datasheet_rate("NVIDIA A100-SXM4-80GB", "bf16-mixed") == 312
    assert datasheet_rate("Tesla T4", "bf16-mixed") is None and datasheet_rate("AMD EPYC", "32-true") is None


def test_the_rate_of_products_is_that_of_the_processors_own_instructions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where bfloat16 is emulated, other works multiply in float32, and so does this."""
    config = {"product": {"cpu": 8}, "precision": "bf16-mixed", "threads": None}
    for has, dtype in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(processor, "multiplies_bfloat16", lambda has=has: has)
        types = []
        monkeypatch.setattr(torch, "mm", lambda a, b, types=types: types.append(torch.matmul(a, b).dtype))
        with settings_of(config, torch.device("cpu")):
            product(config, torch.device("cpu")).turn()
        assert types == [dtype]
